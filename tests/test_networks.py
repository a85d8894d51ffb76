"""The first weights of networks that ask for orthogonal ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fastrl import dqn
from fastrl.learn.networks import build, described


def weights_and_biases(**more: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    description = described("q", "a3c", (4, 84, 84), (), 6, **more)
    state = build(description, [1]).state_dict()
    weights, biases = ({name: t for name, t in state.items() if name.endswith(end)} for end in ("weight", "bias"))
    return weights, biases


def lengthens(weight: torch.Tensor) -> tuple[float, float]:
    """The least and the largest factor by which a layer changes the length of what it sees, as far as it sees it."""
    values = torch.linalg.svdvals(weight.flatten(1))
    return float(values.min()), float(values.max())


@pytest.mark.parametrize("dueling", [False, True])
def test_orthogonal_layers_of_action_values_lengthen_all_they_see_alike(dueling: bool) -> None:
    weights, biases = weights_and_biases(dueling=dueling, orthogonal=True)
    heads = {"value.2.weight", "advantage.2.weight"} if dueling else {"head.weight"}
    assert heads < weights.keys()
    for name, weight in weights.items():
        assert lengthens(weight) == pytest.approx((1.0 if name in heads else math.sqrt(2),) * 2, rel=1e-4), name
    assert not any(bias.any() for bias in biases.values())


def test_without_being_asked_for_they_are_torchs_own() -> None:
    weights, biases = weights_and_biases(dueling=False, orthogonal=False)
    assert all(bias.any() for bias in biases.values())
    assert all(least < 0.9 * most for least, most in map(lengthens, weights.values()))


@pytest.mark.parametrize("orthogonal", [False, True])
def test_dqn_describes_what_its_option_says(orthogonal: bool) -> None:
    class Envs:
        kind, obs_shape, num_actions = "atari", (84, 84), 4

    config = dqn.Config(env="PongNoFrameskip-v4", orthogonal=orthogonal)
    assert dqn.describe_network(config, Envs()).get("orthogonal", False) is orthogonal  # type: ignore[arg-type]
