"""A user's own network, named on the command line as own_network:tiny."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from fastrl.learn.networks import ActorCritic, QNetwork


class Tiny(nn.Module):
    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        self.tiny = nn.Linear(math.prod(description["obs_shape"]), description["num_actions"])

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.tiny(obs.float().flatten(1) / 255)
        return values


def tiny(description: dict[str, Any]) -> nn.Module:
    return Tiny(description)


class TinyActorCritic(nn.Module):
    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        width = math.prod(description["obs_shape"])
        self.policy, self.value = nn.Linear(width, description["num_actions"]), nn.Linear(width, 1)

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        flat = obs.float().flatten(1) / 255
        return self.policy(flat), self.value(flat).squeeze(1)


def tiny_actor_critic(description: dict[str, Any]) -> nn.Module:
    return TinyActorCritic(description)


class ValuesInAColumn(TinyActorCritic):
    """As many users write it."""

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, values = super().forward(obs)
        return logits, values[:, None]


def values_in_a_column(description: dict[str, Any]) -> nn.Module:
    return ValuesInAColumn(description)


class FromOurActorCritic(ActorCritic):
    """Looks like a network of ours, and is another one."""

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, values = super().forward(obs)
        return logits, values + 1000


def from_our_actor_critic(description: dict[str, Any]) -> nn.Module:
    return FromOurActorCritic({**description, "torso": "mlp", "hidden_units": [5]})


class FailsLater(TinyActorCritic):
    """Gives nan once it was asked often enough."""

    asked = 0

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked += 1
        logits, values = super().forward(obs)
        return logits, values * (math.nan if self.asked > 60 else 1)


def fails_later(description: dict[str, Any]) -> nn.Module:
    return FailsLater(description)


def normed(description: dict[str, Any]) -> nn.Module:
    return nn.BatchNorm1d(4)


class NormedValues(nn.Module):
    """Cannot learn from one observation, and answers to one by what it has seen so far."""

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        width = math.prod(description["obs_shape"])
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, description["num_actions"])

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.head(self.norm(obs.flatten(1)))
        return values


def normed_values(description: dict[str, Any]) -> nn.Module:
    return NormedValues(description)


class FromOurs(QNetwork):
    """Looks like a network of ours, and is another one."""

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return super().forward(obs) * 10


def from_ours(description: dict[str, Any]) -> nn.Module:
    network = FromOurs({**description, "torso": "mlp", "hidden_units": [16]})
    network.torso[2] = nn.ELU()
    network.head = nn.Linear(16, description["num_actions"], bias=False)
    return network


class Tied(Tiny):
    """Two layers with one weight, in double precision."""

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__(description)
        self.again = nn.Linear(math.prod(description["obs_shape"]), description["num_actions"])
        self.again.weight = self.tiny.weight
        self.double()

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.tiny(obs.double().flatten(1)) + self.again(obs.double().flatten(1)) / 2
        return values


def tied(description: dict[str, Any]) -> nn.Module:
    return Tied(description)


def no_network(description: dict[str, Any]) -> int:
    return description["num_actions"]  # type: ignore[no-any-return]


def too_wide(description: dict[str, Any]) -> nn.Module:
    return Tiny({**description, "num_actions": description["num_actions"] + 1})


def of_two_types(description: dict[str, Any]) -> nn.Module:
    network = Tiny(description)
    network.tiny.bias = nn.Parameter(network.tiny.bias.detach().double())
    return network
