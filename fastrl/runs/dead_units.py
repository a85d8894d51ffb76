"""Which ReLUs of a network are zero on a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_RELUS = {
    functional.relu,
    torch.relu,
    torch.relu_,
    torch.Tensor.relu,
    torch.Tensor.relu_,
}


def dead_unit_shares(network: nn.Module, forward: Callable[[], Any]) -> dict[str, float]:
    """The share of dead units of each ReLU, by the name of the layer before it; a channel of an image is one unit.

    It sees modules and function calls alike; hooks are there during this call only.
    """
    last_layer = ["the input"]

    def remember(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: last_layer.__setitem__(0, name)

    hooks = [
        module.register_forward_hook(remember(name))
        for name, module in network.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    try:
        with _ReluWatch(last_layer) as watch:
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: 1 - alive.float().mean().item() for name, alive in watch.alive.items()}


class _ReluWatch(TorchFunctionMode):
    """Notes of each ReLU which units were alive."""

    def __init__(self, last_layer: list[str]) -> None:
        super().__init__()
        self.alive: dict[str, torch.Tensor] = {}
        self._last_layer = last_layer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _RELUS:
            units = output.detach().movedim(1, -1) if output.dim() == 4 else output.detach()
            alive = (units > 0).flatten(0, -2).any(0) if units.dim() > 1 else units > 0
            name = self._last_layer[0]
            while name in self.alive and self.alive[name].shape != alive.shape:
                name += "'"  # a second, different ReLU after the same layer
            self.alive[name] = alive | self.alive.get(name, torch.zeros_like(alive))  # of all passes
        return output
