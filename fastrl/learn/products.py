"""Matrix products of the layers on a CPU: torch's own, or oneDNN's where torch's waste half of the processor.

Torch multiplies matrices of fp32 by MKL, which gives AMD's processors vectors of half their width; those of bf16, and
all convolutions, by oneDNN, which does not. Where that is so, the larger products in fp32 are given to oneDNN as well:
they take half of the time. Both come with torch's wheels for x86.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastrl.learn.processor import is_slowed_by_mkl

_LEAST_MULTIPLICATIONS = 2**21  # with fewer, what a call costs by itself is more than what it wins
_WIDE = 2048  # inputs of a layer


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What a linear layer says: of (rows, in) and (out, in), (rows, out)."""
    if product := _faster(x, weight):
        return product(x, weight, bias)
    return torch.addmm(bias, x, weight.t())


def slope_of_given(slope: Tensor, weight: Tensor) -> Tensor:
    """Of what a linear layer was given, (rows, in), by that of what it said."""
    if product := _faster(slope, weight):
        return product(slope, weight.t(), None)
    if weight.shape[1] >= _WIDE and weight.dtype is torch.float32:
        return weight.t().mm(slope.t()).t()  # as columns: for a layer this wide it takes two thirds of the time
    return slope.mm(weight)


def write_slope_of_weight(slope: Tensor, given: Tensor, out: Tensor) -> None:
    """Of a linear layer's weights into ``out``, (out, in), by that of what it said."""
    if product := _faster(slope, out):
        out.copy_(product(slope.t(), given.t(), None))
    else:
        torch.mm(slope.t(), given, out=out)


_Product = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


def _faster(rows: Tensor, weight: Tensor) -> _Product | None:
    """OneDNN's, where it wins; None: torch's own."""
    large = len(rows) * weight.numel() >= _LEAST_MULTIPLICATIONS
    return _one_dnn if large and rows.dtype is torch.float32 and rows.device.type == "cpu" else None


def find_one_dnn() -> _Product | None:
    """OneDNN's x times the transpose of a weight, plus a bias; None where there is none, or it says otherwise."""
    try:
        call: Any = torch.ops.mkldnn._linear_pointwise

        def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            found: Tensor = call(x, weight, bias, "none", [], "")
            return found

        x, weight, bias = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3), torch.arange(4.0)
        right = torch.equal(product(x, weight, bias), torch.addmm(bias, x, weight.t()))
        turned = torch.equal(product(x.t(), weight.t()[:2].t()[:, :2], None), x.t().mm(weight[:, :2].t()))
    except (AttributeError, RuntimeError, TypeError):
        return None
    return product if right and turned else None


# Found once: what multiplies must not change within a run.
_one_dnn: _Product | None = find_one_dnn() if is_slowed_by_mkl() else None
