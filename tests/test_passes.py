"""The way back that is written out, beside autograd's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastrl.learn.hogwild import FlatNetwork
from fastrl.learn.networks import build
from fastrl.learn.passes import Traced, WrittenOut, pass_of

OBS, ACTION, BATCH = 5, 3, 40


def flat(kind: str, units: tuple[int, ...], action_layer: int = 0, **more: Any) -> FlatNetwork:
    description = {
        "kind": kind,
        "obs_shape": [1, OBS],
        "action_size": ACTION,
        "hidden_units": list(units),
        "action_layer": action_layer,
        "final_uniform": 0.3,
        **more,
    }
    return FlatNetwork(build(description, [1]))


def tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("units", [(), (7,), (8, 6), (4, 9, 5)])
def test_an_actors_way_back_is_autograds(units: tuple[int, ...]) -> None:
    network = flat("actor", units)
    obs, slope = tensors((BATCH, 1, OBS), (BATCH, ACTION))
    found = []
    for way in (Traced(network), WrittenOut(network.network)):
        said = way.forward(obs).clone()
        network.gradient.fill_(7)  # what was there before does not count
        way.backward(slope)
        found.append((said, network.gradient.clone()))

    for traced, written in zip(*found, strict=True):
        same(written, traced)


@pytest.mark.parametrize(("units", "layer"), [((7,), 0), ((8, 6), 0), ((8, 6), 1), ((4, 9, 5), 1), ((4, 9, 5), 2)])
def test_a_critics_way_back_is_autograds_for_weights_and_for_the_action(units: tuple[int, ...], layer: int) -> None:
    network = flat("critic", units, layer)
    obs, action, slope = tensors((BATCH, 1, OBS), (BATCH, ACTION), (BATCH,))
    found = []
    for way in (Traced(network), WrittenOut(network.network)):
        said = way.forward(obs, action).clone()
        network.gradient.fill_(7)
        way.backward(slope)
        gradient = network.gradient.clone()
        way.forward(obs, action)
        of_action = way.slope_of_action(slope)
        assert torch.equal(network.gradient, gradient)  # nothing leaks
        found.append((said, gradient, of_action))

    for traced, written in zip(*found, strict=True):
        same(written, traced)


def test_observations_may_lie_apart_and_stay_as_they_are() -> None:
    network = flat("critic", (8, 6))
    seen, action, slope = tensors((BATCH, 2, OBS), (BATCH, ACTION), (BATCH,))
    before, taken = seen.clone(), action.clone()
    way = WrittenOut(network.network)

    together = way.forward(seen[:, :1], action).clone()
    way.backward(slope)

    same(together, network.network(seen[:, :1].contiguous(), action))
    assert torch.equal(seen, before)
    assert torch.equal(action, taken)


def test_weights_that_change_are_followed() -> None:
    network = flat("actor", (8, 6))
    way = pass_of(network)
    (obs,) = tensors((BATCH, 1, OBS))
    way.forward(obs)
    network.values.mul_(0.5)

    same(way.forward(obs), network.network(obs))


def test_what_is_normalised_goes_through_autograd() -> None:
    assert isinstance(pass_of(flat("actor", (8,), batch_norm=True)), Traced)
    assert isinstance(pass_of(flat("critic", (8, 6), 1)), WrittenOut)
