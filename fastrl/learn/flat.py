"""A network whose numbers are one vector: one call copies them, moves them or tells their norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FlatNetwork:
    """A network whose parameters, and whose gradients, lie one after the other in one vector each.

    Filters keep the order in which convolutions on channels-last images want them.

    Raises:
        ValueError: they are of different types, so that no vector holds them.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        parameters = list(network.parameters())
        size = sum(p.numel() for p in parameters)
        kinds = {parameter.dtype for parameter in parameters}
        if len(kinds) != 1 or not parameters[0].is_floating_point():
            raise ValueError(
                f"network: its parameters are {', '.join(sorted(map(str, kinds))) or 'none'}, and should be of one "
                f"floating type, since they are kept as one vector"
            )
        self.values = torch.empty(size, dtype=parameters[0].dtype, device=parameters[0].device)
        self.gradient = torch.zeros_like(self.values)
        at = 0
        for parameter in parameters:
            end = at + parameter.numel()
            placed = _shaped(self.values[at:end], parameter.shape)
            placed.copy_(parameter.detach())
            parameter.data = placed
            parameter.grad = _shaped(self.gradient[at:end], parameter.shape)
            at = end


def _shaped(flat: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) != 4:
        return flat.view(shape)
    filters, channels, rows, columns = shape
    return flat.view(filters, rows, columns, channels).permute(0, 3, 1, 2)


def clip_norm(gradient: Tensor, most: float) -> Tensor:
    """Scale ``gradient`` down to the norm ``most`` if it is longer; 0 leaves it. Returns the norm that it had.

    On a GPU nobody waits for the norm.
    """
    norm: Tensor = gradient.norm()
    if gradient.device.type != "cpu":
        if most > 0:
            gradient.mul_((most / norm).clamp_(max=1.0))
    elif 0 < most < float(norm):
        gradient.mul_(most / float(norm))
    return norm
