"""The way back that is written out, beside autograd's."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from own_network import Tiny

from fastrl.learn.flat import FlatNetwork
from fastrl.learn.networks import QNetwork, build
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


def network_of(kind: str, torso: str, **more: Any) -> FlatNetwork:
    obs_shape = [4, 84, 84] if torso != "mlp" else [1, OBS]
    return FlatNetwork(build({"kind": kind, "torso": torso, "obs_shape": obs_shape, "num_actions": 6, **more}, [1]))


def q_network(torso: str, **more: Any) -> FlatNetwork:
    return network_of("q", torso, **more)


def seen_by(torso: str, generator: torch.Generator) -> torch.Tensor:
    if torso == "mlp":
        return torch.randn((BATCH, 1, OBS), generator=generator)
    return torch.randint(256, (8, 4, 84, 84), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("torso", "centred"), [("nature", False), ("a3c", False), ("a3c", True), ("mlp", False)])
def test_action_values_way_back_is_autograds(torso: str, centred: bool, precision: str) -> None:
    network = q_network(torso, hidden_units=[9, 7], centred=centred)
    generator = torch.Generator().manual_seed(3)
    obs = seen_by(torso, generator)
    slope = torch.randn((len(obs), 6), generator=generator)
    found = []
    written = WrittenOut(cast(QNetwork, network.network), precision)
    for way in (Traced(network, precision), written):
        said = way.forward(obs).clone()
        network.gradient.fill_(7)
        way.backward(slope)
        found.append((said, network.gradient.clone()))

    (said, gradient), (written_said, written_gradient) = found
    far = 2e-6 if precision == "fp32" else 2e-2  # bf16 has three digits; whatever it is, it is not by which way
    assert far_from(written_said, said) < far
    assert far_from(written_gradient, gradient) < far
    assert written_said.dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "torso"),
    [("actor_critic", "nature"), ("actor_critic", "a3c"), ("actor_critic", "mlp"), ("q", "a3c"), ("q", "mlp")],
)
def test_a_rounds_way_back_is_autograds(kind: str, torso: str, precision: str) -> None:
    network = network_of(kind, torso, hidden_units=[9, 7])
    generator = torch.Generator().manual_seed(4)
    steps = [seen_by(torso, generator)[:rows] for rows in (3, 1, 4)]
    slope = torch.randn((8, 7 if kind == "actor_critic" else 6), generator=generator)
    found = []
    for way in (Traced(network, precision), pass_of(network, precision)):
        way.forward(seen_by(torso, generator))  # a round before, which is forgotten
        said = []
        for place, obs in enumerate(steps):
            said.append(way.forward(obs, further=place > 0).clone())
            assert torch.equal(way.look(obs), said[-1])  # remembers nothing
        network.gradient.fill_(7)
        way.backward(slope)
        found.append((torch.cat(said), network.gradient.clone()))

    assert type(way) is WrittenOut
    (said_traced, traced), (said_written, written) = found
    far = 2e-6 if precision == "fp32" else 2e-2
    assert far_from(said_written, said_traced) < far
    assert far_from(written, traced) < far


def test_an_actor_critic_says_logits_and_then_the_value() -> None:
    network = network_of("actor_critic", "a3c")
    obs = seen_by("a3c", torch.Generator().manual_seed(0))
    logits, values = network.network(obs)
    said = pass_of(network).look(obs)
    same(said[:, :-1], logits)
    same(said[:, -1], values)


def test_two_heads_follow_their_weights_once_told() -> None:
    network = network_of("actor_critic", "a3c")
    way = pass_of(network)
    obs = seen_by("a3c", torch.Generator().manual_seed(0))
    way.look(obs)
    network.values.mul_(0.5)
    way.weights_changed()

    same(way.look(obs)[:, -1], network.network(obs)[1])


def test_what_a_user_changed_goes_through_autograd() -> None:
    network = network_of("actor_critic", "a3c")
    assert isinstance(pass_of(network), WrittenOut)
    assert isinstance(pass_of(network, own=True), Traced)


def far_from(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_in_reduced_precision_weights_are_followed_once_told() -> None:
    network = q_network("a3c")
    way = pass_of(network, "bf16")
    assert isinstance(way, WrittenOut)
    obs = seen_by("a3c", torch.Generator().manual_seed(0))
    before = way.forward(obs)
    network.values.mul_(0.5)
    # The last layer is no copy: it is halved at once, and is all that is.
    assert torch.equal(way.forward(obs), before * 0.5)

    way.weights_changed()

    assert far_from(way.forward(obs), Traced(network, "bf16").forward(obs)) < 1e-2
    assert far_from(way.forward(obs), before) > 0.1


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize(("kind", "more"), [("q", {}), ("q", {"dueling": True}), ("actor_critic", {})])
def test_values_that_differ_by_a_thousandth_differ_in_reduced_precision_too(
    kind: str, more: dict[str, Any], written: bool
) -> None:
    network = network_of(kind, "a3c", **more)
    last = network.network.advantage[-1] if more else network.network.head if kind == "q" else network.network.policy
    with torch.no_grad():
        last.weight.copy_(last.weight[:1].expand_as(last.weight))
        last.bias.copy_(1 + torch.arange(6) / 1000)
    way = pass_of(network, "bf16") if written else Traced(network, "bf16")
    said = way.look(seen_by("a3c", torch.Generator().manual_seed(5)))[:, :6]
    same(said.diff(dim=1), torch.full((len(said), 5), 0.001))


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


def test_what_is_no_chain_of_layers_goes_through_autograd() -> None:
    assert isinstance(pass_of(q_network("a3c")), WrittenOut)
    assert isinstance(pass_of(q_network("a3c", dueling=True)), Traced)
    assert isinstance(pass_of(FlatNetwork(Tiny({"obs_shape": [1, 3], "num_actions": 2}))), Traced)


def test_what_autograd_does_not_reach_has_no_slope() -> None:
    network = FlatNetwork(Half())
    way = pass_of(network)
    network.gradient.fill_(7)

    way.forward(torch.ones(2, 3))
    way.backward(torch.ones(2, 1))

    assert network.gradient.tolist() == [2.0, 2.0, 2.0, 0.0, 0.0, 0.0]


class Half(torch.nn.Module):
    """Uses one of its layers only."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = torch.nn.Linear(3, 1, bias=False), torch.nn.Linear(3, 1, bias=False)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        said: torch.Tensor = self.used(obs)
        return said
