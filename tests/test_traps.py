"""Each trap fires on a network in which its failure was planted, names it, and is silent on a healthy one."""

from __future__ import annotations

import json
import math
import timeit
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fastrl.runs.norms import gradient_norms, histograms_of, parameter_norm, total_norm
from fastrl.runs.traps import NonFiniteLoss, Traps


class Network(nn.Module):
    """A small DQN whose failures can be planted."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 8, 4)
        self.hidden = nn.Linear(8 * 20 * 20, 32, bias=False)  # a bias before normalisation learns nothing
        self.head = nn.Linear(32, 4)
        self.norm = nn.BatchNorm1d(32)
        self.detached = False

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        features = functional.relu(self.conv(frames)).flatten(1)
        if self.detached:
            features = features.detach()
        return self.head(functional.relu(self.norm(self.hidden(features))))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(1)
    return Network()


def batch(size: int = 32) -> torch.Tensor:
    return torch.rand(size, 4, 84, 84, generator=torch.Generator().manual_seed(2))


def update(network: nn.Module) -> torch.Tensor:
    network.zero_grad()
    loss = network(batch(8)).square().mean()
    loss.backward()
    return loss


def train(network: nn.Module, traps: Traps, updates: int) -> None:
    """Many updates for the price of one: the gradient of the first stands for all."""
    loss = update(network)
    for i in range(1, updates + 1):
        traps.after_update(i, loss)


# ---- a healthy network


def test_a_healthy_network_is_left_in_peace(network: Network) -> None:
    notes: list[str] = []
    traps = Traps(network, notes.append, check_every_updates=10, constant_policy_steps=100)
    train(network, traps, 400)
    shares = traps.inspect(lambda: network(batch()))
    actions = np.random.default_rng(3).integers(0, 4, (100, 16))
    for row in actions:
        traps.saw_actions(row)

    assert notes == []
    assert list(shares) == ["conv", "norm"]
    assert all(share < 0.5 for share in shares.values())


# ---- zero gradients


@pytest.mark.parametrize("cleared", [True, False])
def test_a_layer_that_is_cut_off_is_named_once(network: Network, cleared: bool) -> None:
    notes: list[str] = []
    network.detached = True
    traps = Traps(network, notes.append, check_every_updates=10, zero_gradient_checks=5)
    loss = update(network)
    if not cleared:  # an optimiser that clears with zeros
        for parameter in network.conv.parameters():
            parameter.grad = torch.zeros_like(parameter)
    for i in range(1, 50):
        traps.after_update(i, loss)
    assert notes == []
    for i in range(50, 300):
        traps.after_update(i, loss)

    assert [note.split(" does not learn")[0] for note in notes] == ["TRAP: conv.weight", "TRAP: conv.bias"]
    assert "since update 10" in notes[0]
    assert "detach" in notes[0]


def test_a_gradient_that_is_tiny_or_zero_now_and_then_is_no_trap(network: Network) -> None:
    notes: list[str] = []
    traps = Traps(network, notes.append, check_every_updates=1, zero_gradient_checks=5)
    loss = update(network)
    for i in range(1, 100):
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter) if i % 5 else torch.full_like(parameter, 1e-42)
        if i == 50:  # its square is too large to be a number
            network.head.weight.grad = torch.full_like(network.head.weight, 1e30)
        traps.after_update(i, loss)

    assert notes == []


def test_frozen_parameters_are_not_expected_to_learn(network: Network) -> None:
    notes: list[str] = []
    network.conv.requires_grad_(False)
    train(network, Traps(network, notes.append, check_every_updates=1, zero_gradient_checks=3), 10)

    assert notes == []


def test_gradients_that_were_cleared_too_early_are_said(network: Network) -> None:
    notes: list[str] = []
    traps = Traps(network, notes.append, check_every_updates=1)
    for i in range(1, 60):
        traps.after_update(i, 0.5)

    assert len(notes) == 1
    assert "before it clears gradients" in notes[0]


# ---- losses that are not finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_loss_that_is_not_finite_stops_the_run_at_once(network: Network, kind: Any, value: float) -> None:
    traps = Traps(network, print)
    traps.after_update(6, kind(1.0))

    with pytest.raises(NonFiniteLoss, match=f"the loss is {value} at update 7"):
        traps.after_update(7, kind(value))


def test_a_gradient_that_is_not_finite_is_named_at_the_next_check_or_before_a_checkpoint(network: Network) -> None:
    traps = Traps(network, print)
    update(network)
    assert network.hidden.weight.grad is not None
    network.hidden.weight.grad[3, 4] = math.nan
    traps.after_update(249, 0.5)

    with pytest.raises(NonFiniteLoss, match=r"the gradient of hidden\.weight is nan at update 249"):
        traps.check(249, 0.5)
    with pytest.raises(NonFiniteLoss, match=r"hidden\.weight"):
        traps.after_update(250, 0.5)


# ---- dead ReLUs


def test_a_dead_layer_is_named_once(network: Network) -> None:
    notes: list[str] = []
    traps = Traps(network, notes.append)
    with torch.no_grad():
        network.conv.bias.fill_(-1000)
    traps.after_update(1000, update(network))
    for _ in range(2):
        shares = traps.inspect(lambda: network(batch()))

    assert shares["conv"] == 1
    assert [note for note in notes if "conv" in note] == [notes[0]]
    assert "the ReLU after conv is dead: at update 1000 100% of its units" in notes[0]


def test_relu_modules_and_several_passes_are_seen(network: Network) -> None:
    layers = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(inplace=True))
    with torch.no_grad():
        for layer in (layers[0], layers[2]):
            layer.weight.zero_()
        layers[0].weight[:, 0] = torch.tensor([1.0, -1, 0, 0])
        layers[0].bias.copy_(torch.tensor([0.0, 0, 0, 1]))
        layers[2].bias.copy_(torch.tensor([-1.0, -1, -1, 1]))
    traps = Traps(layers, print)

    positive = torch.tensor([[1.0, 0.0]])
    assert traps.inspect(lambda: layers(positive)) == {"0": 0.5, "2": 0.75}
    assert traps.inspect(lambda: (layers(positive), layers(-positive))) == {"0": 0.25, "2": 0.75}
    assert not layers[0]._forward_hooks


def test_an_inspection_changes_nothing(network: Network) -> None:
    network.dropout = nn.Dropout()
    network.norm.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()

    Traps(network, print).inspect(lambda: network.dropout(network(batch())) + torch.rand(1))

    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert network.training
    assert not network.norm.training
    assert network.head.weight.grad is None


# ---- constant policies


@pytest.mark.parametrize("action", [2, [1.0, -1.0]])
def test_a_constant_policy_is_named_once(network: Network, action: Any) -> None:
    notes: list[str] = []
    traps = Traps(network, notes.append, constant_policy_steps=160)
    for _ in range(30):
        traps.saw_actions([action] * 16)  # before the first update nothing is expected
    traps.after_update(1, 0.5)
    for _ in range(10):
        traps.saw_actions([action] * 16)
    assert notes == []
    for _ in range(30):
        traps.saw_actions([action] * 16)

    assert len(notes) == 1
    assert f"since update 1 it prefers action {action}" in notes[0]


def test_one_other_action_is_enough_to_be_no_constant_policy(network: Network) -> None:
    notes: list[str] = []
    traps = Traps(network, notes.append, constant_policy_steps=160)
    traps.after_update(1, 0.5)
    for i in range(60):
        traps.saw_actions([2] * 15 + [2 if i % 8 else 3])

    assert notes == []


# ---- resume, cost, norms


def test_traps_go_on_after_a_resume(network: Network) -> None:
    network.detached = True
    said: dict[str, list[str]] = {"whole": [], "first": [], "second": []}
    settings: dict[str, Any] = {"check_every_updates": 7, "zero_gradient_checks": 4, "constant_policy_steps": 200}

    def run(traps: Traps, first: int, last: int) -> None:
        for i in range(first, last):
            traps.after_update(i, loss)
            traps.saw_actions([1, 1, 1, 1])

    loss = update(network)
    whole = Traps(network, said["whole"].append, **settings)
    run(whole, 1, 100)
    first = Traps(network, said["first"].append, **settings)
    run(first, 1, 30)
    second = Traps(network, said["second"].append, **settings)
    second.load(json.loads(json.dumps(first.state())))
    run(second, 30, 100)

    assert said["first"] + said["second"] == said["whole"]
    assert len(said["whole"]) == 3
    assert second.state() == whole.state()


def test_watching_is_cheap(network: Network) -> None:
    traps = Traps(network, print)
    loss = update(network).detach()
    updates = iter(range(1, 10**9))

    seconds = min(timeit.repeat(lambda: traps.after_update(next(updates), loss), number=2500, repeat=5)) / 2500

    assert seconds < 5e-6 * 3  # with the checks; room for a machine that does other things too


def test_norms_are_those_of_all_numbers(network: Network) -> None:
    network.head.requires_grad_(False)
    update(network)
    norms = gradient_norms(network)

    assert list(norms) == ["conv", "hidden", "norm"]
    assert network.conv.weight.grad is not None
    assert network.conv.bias.grad is not None
    flat = torch.cat([network.conv.weight.grad.flatten(), network.conv.bias.grad])
    assert norms["conv"] == pytest.approx(flat.norm().item())
    every = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    assert total_norm(norms) == pytest.approx(every.norm().item())
    weights = torch.cat([p.detach().flatten() for p in network.parameters()])
    assert parameter_norm(network) == pytest.approx(weights.norm().item())
    assert gradient_norms(Network()) == {"conv": 0, "hidden": 0, "head": 0, "norm": 0}


def test_histograms_have_all_weights_and_the_gradients_there_are(network: Network) -> None:
    update(network)
    network.head.bias.grad = None
    found = histograms_of(network)

    assert len(found) == 2 * 7 - 1
    np.testing.assert_array_equal(found["weights/head.bias"], network.head.bias.detach().numpy())
    assert network.conv.weight.grad is not None
    np.testing.assert_array_equal(found["gradients/conv.weight"], network.conv.weight.grad.numpy().ravel())
