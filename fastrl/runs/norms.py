"""Sizes of weights and gradients, for the log: each call waits for a GPU once, however many layers there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn


def norms_of(tensors: Sequence[torch.Tensor], order: float = 2.0) -> list[float]:
    """The norm of each tensor; ``order=math.inf`` is the largest magnitude, zero only where all are exactly zero."""
    filled = [tensor.detach() for tensor in tensors if tensor.numel()]
    found = iter(torch.stack(torch._foreach_norm(filled, order)).tolist() if filled else [])
    return [next(found) if tensor.numel() else 0.0 for tensor in tensors]


def total_norm(norms: Mapping[str, float]) -> float:
    """The norm of all parts together."""
    return math.hypot(*norms.values())


def gradient_norms(network: nn.Module) -> dict[str, float]:
    """The norm of each layer's gradients (weights and biases together), by the layer's name; 0 where there is none.

    Example:
        >>> norms = gradient_norms(network)
        >>> row |= {f"grad_norm/{layer}": norm for layer, norm in norms.items()}
        >>> row["grad_norm"] = total_norm(norms)
    """
    named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    with_gradient = [(name, parameter.grad) for name, parameter in named if parameter.grad is not None]
    norms = norms_of([gradient for _, gradient in with_gradient])
    layers: dict[str, float] = {_layer_of(name): 0.0 for name, _ in named}
    for (name, _), norm in zip(with_gradient, norms, strict=True):
        layers[_layer_of(name)] = math.hypot(layers[_layer_of(name)], norm)
    return layers


def parameter_norm(network: nn.Module) -> float:
    """The norm of all parameters together."""
    return math.hypot(*norms_of(list(network.parameters())))


def histograms_of(network: nn.Module) -> dict[str, npt.NDArray[np.float32]]:
    """All weights and gradients, flat, as ``MetricsLog.histograms`` takes them; copies them from a GPU."""
    found = {}
    for name, parameter in network.named_parameters():
        found[f"weights/{name}"] = _flat(parameter)
        if parameter.grad is not None:
            found[f"gradients/{name}"] = _flat(parameter.grad)
    return found


def _flat(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    flat: npt.NDArray[np.float32] = tensor.detach().float().flatten().cpu().numpy()
    return flat


def _layer_of(parameter_name: str) -> str:
    return parameter_name.rpartition(".")[0] or parameter_name
