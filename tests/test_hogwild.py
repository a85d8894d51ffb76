"""The shared RMSProp beside a float64 reference, and its counters by scripted schedules with known answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fastrl.learn.flat import FlatNetwork, clip_norm
from fastrl.learn.hogwild import SharedParameters, SharedRMSProp
from fastrl.learn.networks import build

DESCRIPTION = {"kind": "actor_critic", "torso": "a3c", "obs_shape": [4, 84, 84], "num_actions": 3}


def workers(count: int, size: int = 8, **changes: Any) -> tuple[SharedParameters, list[SharedRMSProp]]:
    shared = SharedParameters(size, count)
    settings = {"decay": 0.9, "epsilon": 0.1, **changes}
    return shared, [SharedRMSProp(shared, i, **settings) for i in range(count)]


def test_a_flat_network_is_the_same_network() -> None:
    network, same = build(DESCRIPTION, [0]), build(DESCRIPTION, [0])
    obs = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 4, 84, 84), np.uint8))
    flat = FlatNetwork(network)

    for ours, theirs in zip(network(obs), same(obs), strict=True):
        assert torch.equal(ours, theirs)
    for net in (network, same):
        logits, values = net(obs)
        (logits.square().sum() + values.sum()).backward()
    assert float(flat.gradient.norm()) > 0
    for (name, ours), theirs in zip(network.named_parameters(), same.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)
        assert ours.untyped_storage().data_ptr() == flat.values.untyped_storage().data_ptr()
        assert ours.grad.untyped_storage().data_ptr() == flat.gradient.untyped_storage().data_ptr()


def test_clipping_scales_what_is_too_long_and_tells_what_it_was() -> None:
    gradient = torch.tensor([3.0, 4.0])

    assert clip_norm(gradient, 0) == 5
    assert gradient.tolist() == [3, 4]
    assert clip_norm(gradient, 10) == 5
    assert gradient.tolist() == [3, 4]
    assert clip_norm(gradient, 2.5) == 5
    assert gradient.tolist() == [1.5, 2]


def require_rmsprop(make: Callable[[], tuple[SharedParameters, list[Any]]]) -> None:
    """Two workers in turn share one running average of squares."""
    shared, both = make()
    generator = np.random.default_rng(0)
    start = generator.normal(size=8)
    shared.values.copy_(torch.from_numpy(start))
    squares, expected = np.zeros(8), start.copy()
    for turn in range(40):
        gradient = generator.normal(size=8)
        both[turn % 2].apply(torch.from_numpy(gradient).float(), 0.01)
        squares = 0.9 * squares + 0.1 * gradient**2
        expected -= 0.01 * gradient / np.sqrt(squares + 0.1)
    np.testing.assert_allclose(shared.values.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(shared.squares.numpy(), squares, rtol=1e-5)


def test_shared_rmsprop_is_the_formula_in_float64() -> None:
    require_rmsprop(lambda: workers(2))


class EpsilonOutside(SharedRMSProp):
    def apply(self, gradient: torch.Tensor, rate: float) -> None:
        squares = self._shared.squares.mul_(self._decay).addcmul_(gradient, gradient, value=1 - self._decay)
        self._shared.values.addcdiv_(gradient, squares.sqrt() + self._epsilon, value=-rate)


class OwnSquares(SharedRMSProp):
    def __init__(self, shared: SharedParameters, worker: int, decay: float, epsilon: float) -> None:
        super().__init__(shared, worker, decay, epsilon)
        self.own = torch.zeros(shared.size)

    def apply(self, gradient: torch.Tensor, rate: float) -> None:
        self.own.mul_(self._decay).addcmul_(gradient, gradient, value=1 - self._decay)
        self._shared.values.addcdiv_(gradient, (self.own + self._epsilon).sqrt(), value=-rate)


@pytest.mark.parametrize("mistake", [EpsilonOutside, OwnSquares])
def test_the_test_of_rmsprop_finds_a_planted_mistake(mistake: type[SharedRMSProp]) -> None:
    def wrong() -> tuple[SharedParameters, list[SharedRMSProp]]:
        shared = SharedParameters(8, 2)
        return shared, [mistake(shared, i, 0.9, 0.1) for i in range(2)]

    with pytest.raises(AssertionError):
        require_rmsprop(wrong)


def test_lag_counts_what_others_applied_since_the_snapshot() -> None:
    shared, (a, b, c) = workers(3)
    copy, gradient = torch.empty(8), torch.ones(8)

    for worker in (a, b, c):
        worker.snapshot(copy)
    a.apply(gradient, 0.1)  # nobody else was before it
    b.apply(gradient, 0.1)  # a was
    a.snapshot(copy)
    c.apply(gradient, 0.1)  # a and b were
    a.apply(gradient, 0.1)  # c was
    b.snapshot(copy)
    b.apply(gradient, 0.1)

    assert shared.counts() == {"begun": 5, "done": 5, "lag": 0 + 1 + 2 + 1 + 0, "overlaps": 0, "refreshes": 0}
    assert shared.applied() == 5


class Interrupted:
    """The shared values, whose next change is held up until ``meanwhile`` is done."""

    def __init__(self, values: torch.Tensor, meanwhile: Callable[[], None]) -> None:
        self.values, self.meanwhile = values, meanwhile

    def addcdiv_(self, *args: Any, **more: Any) -> None:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        self.values.addcdiv_(*args, **more)


def test_overlaps_count_who_else_was_at_work() -> None:
    shared, (a, b, c) = workers(3)
    gradient = torch.ones(8)

    def b_and_then_c() -> None:
        b.apply(gradient, 0.1)  # while a is at work: 1
        c.apply(gradient, 0.1)  # while a is at work, b is done: 1

    shared.values = Interrupted(shared.values, b_and_then_c)  # type: ignore[assignment]
    a.apply(gradient, 0.1)  # b and c came meanwhile: 2
    c.apply(gradient, 0.1)  # alone: 0

    assert shared.counts()["overlaps"] == 1 + 1 + 2 + 0


def test_a_dead_workers_unfinished_work_overlaps_nobody() -> None:
    shared, (a, b) = workers(2)

    def die() -> None:
        raise InterruptedError

    shared.values = Interrupted(shared.values, die)  # type: ignore[assignment]
    with pytest.raises(InterruptedError):
        a.apply(torch.ones(8), 0.1)
    shared.values = shared.values.values
    b.apply(torch.ones(8), 0.1)
    assert shared.counts()["overlaps"] == 1
    shared.forget_unfinished(0)
    b.snapshot(torch.empty(8))
    b.apply(torch.ones(8), 0.1)

    assert shared.counts() == {"begun": 2, "done": 2, "lag": 0, "overlaps": 1, "refreshes": 0}


def test_counts_go_on_where_they_were_and_others_see_the_same_memory() -> None:
    shared, (a, b) = workers(2)
    a.apply(torch.ones(8), 0.1)
    b.apply(torch.ones(8), 0.1)
    shared.refreshes = 7
    resumed, _ = workers(2)
    resumed.set_counts(shared.counts())
    assert resumed.counts() == shared.counts()

    attached = SharedParameters.attach(shared.handle())
    SharedRMSProp(attached, 1, 0.9, 0.1).apply(torch.ones(8), 0.1)
    assert shared.applied() == 3
    assert torch.equal(shared.values, attached.values)
    assert float(shared.values[0]) < 0
