"""What a configuration refuses, in the words of the one place that checks it."""

from __future__ import annotations

from typing import Any

import pytest

from fastrl import a3c, async_q, ddpg, dqn

LAYERS = [
    (dqn.Config, "hidden_units"),
    (a3c.Config, "hidden_units"),
    (async_q.Config, "hidden_units"),
    (ddpg.Config, "actor_hidden_units"),
    (ddpg.Config, "critic_hidden_units"),
]


@pytest.mark.parametrize(("config", "name"), LAYERS)
@pytest.mark.parametrize("units", [(64, 0), (64.5,), (True,), ("64",), 64, None])
def test_hidden_layers_have_whole_numbers_of_units(config: Any, name: str, units: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: .* are not whole numbers from 1 on, one for each layer"):
        config(**{name: units})


@pytest.mark.parametrize(("config", "name"), LAYERS)
def test_hidden_layers_can_be_few_or_many(config: Any, name: str) -> None:
    for units in ((8,), (8, 16, 8)):
        assert getattr(config(**{name: units}), name) == units
