"""A user's own network, named on the command line as own_network:tiny."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        self.tiny = nn.Linear(math.prod(description["obs_shape"]), description["num_actions"])

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.tiny(obs.float().flatten(1) / 255)
        return values


def tiny(description: dict[str, Any]) -> nn.Module:
    return Tiny(description)
