"""Asynchronous Q's targets by hand-worked numbers, its rounds with scripted games, and whole runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_updates
import numpy as np
import pytest
import small_envs  # noqa: F401  (its envs are named here)
import tiny_training
import torch
from scripted_envs import ScriptedEnvs, played, random_games, rows, two_games

from fastrl import async_q
from fastrl.learn.flat import FlatNetwork
from fastrl.learn.hogwild import SharedParameters
from fastrl.learn.networks import build, named_factory
from fastrl.runs import asynchronous
from fastrl.runs.session import Session

TINY: dict[str, Any] = {
    **tiny_training.TINY_PONG,
    "workers": 2,
    "sync": True,
    "steps": 400,
    "epsilon_frames": 2000,
    "target_every_frames": 480,
    "log_every_steps": 100,
}
preset = functools.partial(tiny_training.preset, async_q.TRAINER)
pytestmark = pytest.mark.usefixtures("digest_at_end")


# ---- the rule


def require_one_step(targets: Callable[..., torch.Tensor]) -> None:
    """One goes on, one ended, one is negative."""
    found = targets(torch.tensor([1.0, 1.0, -1.0]), torch.tensor([1.0, 0.0, 1.0]), torch.tensor([4.0, 4.0, 2.0]), 0.9)
    assert found.tolist() == pytest.approx([4.6, 1.0, 0.8])


def require_n_steps(targets: Callable[..., torch.Tensor]) -> None:
    """Worked by hand with gamma 0.5: the first game goes on, the second ends, the third is cut."""
    reward = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    terminated, cut, cut_value = torch.zeros(3, 3), torch.zeros(3, 3), torch.zeros(3, 3)
    terminated[1, 1] = cut[1, 2] = 1
    cut_value[1, 2] = 6
    last = torch.tensor([8.0, 8.0, 4.0])
    # 0 + 4, 2 + 2, 1 + 2; at the end 2 and 1 + 1; at the cut 2 + 3 and 1 + 2.5.
    expected = [[3.0, 2.0, 3.5], [4.0, 2.0, 5.0], [4.0, 4.0, 2.0]]
    assert targets(reward, terminated, cut_value, cut, last, 0.5).tolist() == expected


def test_targets_are_as_worked_by_hand() -> None:
    require_one_step(async_q.one_step_targets)
    require_n_steps(async_q.n_step_targets)


def beyond_the_end(reward: Any, going_on: Any, following: Any, discount: float) -> Any:
    return async_q.one_step_targets(reward, torch.ones_like(going_on), following, discount)


def only_ends_go_on(reward: Any, going_on: Any, following: Any, discount: float) -> Any:
    return async_q.one_step_targets(reward, 1 - going_on, following, discount)


def through_ends(reward: Any, terminated: Any, cut_value: Any, cut: Any, last: Any, discount: float) -> Any:
    return async_q.n_step_targets(reward, 0 * terminated, cut_value, cut, last, discount)


def nothing_after_a_cut(reward: Any, terminated: Any, cut_value: Any, cut: Any, last: Any, discount: float) -> Any:
    return async_q.n_step_targets(reward, terminated, 0 * cut_value, cut, last, discount)


def through_cuts(reward: Any, terminated: Any, cut_value: Any, cut: Any, last: Any, discount: float) -> Any:
    return async_q.n_step_targets(reward, terminated, cut_value, 0 * cut, last, discount)


def one_step_short(reward: Any, terminated: Any, cut_value: Any, cut: Any, last: Any, discount: float) -> Any:
    return async_q.n_step_targets(reward, terminated, cut_value, cut, last / discount, discount)


def test_the_tests_of_targets_find_planted_mistakes() -> None:
    for mistake in (beyond_the_end, only_ends_go_on):
        with pytest.raises(AssertionError):
            require_one_step(mistake)
    for wrong in (through_ends, nothing_after_a_cut, through_cuts, one_step_short):
        with pytest.raises(AssertionError):
            require_n_steps(wrong)


# ---- a round


class Table(torch.nn.Module):
    """Q(s, a) in a table; an observation is its state's number."""

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        self.q = torch.nn.Parameter(torch.stack([torch.arange(20.0), 20 - torch.arange(20.0)], 1))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.q[obs.flatten(1)[:, 0].long()]


def table(description: dict[str, Any]) -> torch.nn.Module:
    return Table(description)


TABLE = {"kind": "q", "factory": "test_async_q:table", "torso": "own", "obs_shape": [1, 1], "num_actions": 2}


def a_worker(config: async_q.Config, envs: Any, network: dict[str, Any] = TABLE) -> async_q.Worker:
    config = dataclasses.replace(config, network=network.get("factory", config.network))
    first = FlatNetwork(build(network, [1], named_factory(config.network))).values
    shared = SharedParameters(first.numel(), 1, copies=1)
    for vector in (shared.values, shared.further[0]):
        vector.copy_(first)
    worker = async_q.Worker(config, network, shared, 0, envs, "test")
    worker.start(None)
    return worker


def gradient_of_a_round(config: async_q.Config, worker: async_q.Worker) -> np.ndarray:
    seen: list[torch.Tensor] = []
    worker.optimiser.apply = lambda gradient, rate: seen.append(gradient.clone())  # type: ignore[method-assign]
    worker.round(0)
    return seen[0].view(20, 2).numpy()


BY_HAND: dict[str, Any] = {
    "workers": 1, "envs_per_worker": 2, "discount": 0.5, "max_gradient_norm": 0.0,
    "epsilon_first": 0.0, "epsilon_finals": (0.0,), "epsilon_final_probabilities": (1.0,),
}  # fmt: skip


@pytest.mark.parametrize(
    ("n_step", "targets"),
    [
        # The target network's best of state s is max(s, 20 - s) + 1 here: the target's table is one higher.
        (1, {1: 1 + 19 / 2, 2: 0, 3: 1 + 14 / 2, 4: 0 + 16 / 2, 5: 1 + 12 / 2, 6: -1 + 13 / 2}),
        (3, {1: 1 + 0 / 2, 2: 0, 3: 1 + 14 / 2, 4: 0 + 7 / 2, 5: 1 + 12 / 2, 6: -1 + 13 / 2}),
    ],
)
def test_a_round_learns_what_was_worked_by_hand(n_step: int, targets: dict[int, float]) -> None:
    rounds = {"round_steps": 3} if n_step == 1 else {}  # n-step Q's have n steps
    config = preset("paper", n_step=n_step, **{**BY_HAND, **rounds})
    worker = a_worker(config, two_games())
    worker.shared.further[0].add_(1)
    found = gradient_of_a_round(config, worker)

    expected = np.zeros((20, 2))
    for state, target in targets.items():
        expected[state, 1] = 2 * (20 - state - target) / 2  # greedy takes action 1; the mean over two games
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_sarsa_follows_the_actions_that_were_taken_and_carries_the_last_into_the_next_round() -> None:
    config = preset(
        "paper", n_step=1, sarsa=True, round_steps=3, **{**BY_HAND, "epsilon_finals": (1.0,), "epsilon_first": 1.0}
    )
    envs = two_games()
    worker = a_worker(config, envs)
    found = gradient_of_a_round(config, worker)
    assert worker.chosen is not None
    carried = worker.chosen.copy()
    saved = worker.state()

    table = np.stack([np.arange(20.0), 20 - np.arange(20.0)], 1)
    taken = [*envs.actions, carried]
    states = [(1, 4), (2, 5), (3, 6), (7, 8)]
    expected = np.zeros((20, 2))
    for step, reward in enumerate([[1, 0], [0, 1], [1, -1]]):
        for env in range(2):
            following = table[states[step + 1][env], taken[step + 1][env]]
            if step == 1:
                following = [0, 11][env]  # an end; a cut, in state 9
            state, action = states[step][env], taken[step][env]
            expected[state, action] += table[state, action] - (reward[env] + following / 2)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    # Whoever goes on from the saved state takes the same action next.
    resumed = a_worker(config, ScriptedEnvs(rows(7, 8), envs.steps[3:], 2))
    resumed.start(saved)
    resumed.config = dataclasses.replace(resumed.config, round_steps=1)
    resumed.round(3)
    assert resumed.envs.actions[0].tolist() == carried.tolist()  # type: ignore[union-attr]


def test_the_target_network_is_refreshed_by_frames_and_not_between() -> None:
    config = preset("paper", workers=1, envs_per_worker=2, n_step=1, round_steps=1, target_every_frames=16)
    worker = a_worker(config, ScriptedEnvs(rows(1, 4), [played(rows(2, 5), [1, 1])] * 8, 2))
    began = worker.shared.values.clone()
    refreshed = []
    for steps in range(0, 16, 2):  # 8 frames a round
        before = worker.shared.values.clone()
        worker.round(steps)
        at = worker.target.values
        refreshed.append(torch.equal(at, before) and not torch.equal(at, began))
        assert torch.equal(at, worker.shared.further[0])
    assert refreshed == [False, False, True, False, True, False, True, False]
    assert worker.shared.refreshes == 3


def test_a_target_that_is_never_copied_is_found_out() -> None:
    config = preset("paper", n_step=1, round_steps=3, **BY_HAND)
    worker = a_worker(config, two_games())
    worker.shared.further[0].add_(1)
    worker.target_refresh = 0  # the planted mistake: it believes to have the copy
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(gradient_of_a_round(config, worker)[1, 1], 19 - 10.5)


def test_final_epsilons_are_drawn_with_their_probabilities_by_seed_and_life() -> None:
    config = preset("paper")
    drawn = async_q.final_epsilons(config, "worker 0 life 0", 20_000)

    for value, probability in ((0.1, 0.4), (0.01, 0.3), (0.5, 0.3)):
        assert (drawn == value).mean() == pytest.approx(probability, abs=0.015)
    assert (drawn == async_q.final_epsilons(config, "worker 0 life 0", 20_000)).all()
    assert (drawn != async_q.final_epsilons(config, "worker 0 life 1", 20_000)).any()


def test_every_game_explores_by_its_own_epsilon() -> None:
    worker = a_worker(preset("paper", workers=1, envs_per_worker=2), two_games())
    worker.finals = np.array([0.1, 0.5])

    assert worker.epsilons(0).tolist() == [1, 1]
    assert worker.epsilons(500_000).tolist() == pytest.approx([0.55, 0.75])  # 2M of 4M frames
    assert worker.epsilons(2_000_000).tolist() == pytest.approx([0.1, 0.5])
    greedy = np.mean([worker.explore(np.array([1, 1]), np.array([0.1, 0.5])) for _ in range(5000)], axis=0)
    np.testing.assert_allclose(greedy, [0.95, 0.75], atol=0.02)


def movement(config: async_q.Config) -> np.ndarray:
    network = {"kind": "q", "torso": "a3c", "obs_shape": [4, 84, 84], "num_actions": 6, "dueling": config.dueling}
    round_steps = config.round_steps if config.n_step == 1 else config.n_step
    envs = random_games(golden_updates.UPDATES * round_steps, config.envs_per_worker, (4, 84, 84), 6, seed=1)
    return golden_updates.movement_by_rounds(a_worker(config, envs, network))


# Small rates: what rounding differs between processors then stays small over a hundred updates. Epsilon stays 1, since
# the best of actions of nearly equal value is rounding's choice.
GOLDEN_SHARED: dict[str, Any] = {"workers": 1, "envs_per_worker": 2, "learning_rate": 1e-5, "target_every_frames": 800}
GOLDEN_CONFIGS: dict[str, dict[str, Any]] = {
    "paper": {**GOLDEN_SHARED, "learning_rate_steps": 4000, "epsilon_frames": 10**9},
}


@pytest.mark.parametrize("name", GOLDEN_CONFIGS)
def test_a_hundred_updates_move_the_weights_as_they_always_did(name: str) -> None:
    config = preset(name, **GOLDEN_CONFIGS[name])
    golden_updates.require_golden("async_q", name, movement, config, "learning_rate")


# ---- settings


@pytest.mark.parametrize("name", async_q.PRESETS)
def test_presets_are_whole_configurations(name: str) -> None:
    tiny_training.require_whole_configuration(preset(name), name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_step": -1}, "n_step: -1 is not a whole number"),
        ({"target_every_frames": 0}, "target_every_frames: 0 is not a whole number"),
        ({"sarsa": True}, "sarsa: is one-step here, but n_step is 5; give --n-step 1"),
        ({"epsilon_finals": (0.1, 0.2)}, r"are not one for each of epsilon_finals \(0.1, 0.2\)"),
        ({"epsilon_final_probabilities": (0.4, 0.3, 0.2)}, "with the sum 1"),
        ({"epsilon_finals": (0.1, 0.01, 1.5)}, r"epsilon_finals: 1.5 is outside \[0, 1\]"),
        ({"rmsprop_epsilon": 0.0}, "rmsprop_epsilon: 0 would divide 0 by 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset("paper", **change)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("Pendulum-v1", r"env: Pendulum-v1 has actions Box\(.* to choose from .* is needed; fastrl ddpg takes a Box"),
        ("test/Switches-v0", r"has actions MultiDiscrete\(\[2 3\]\); .* is needed; .*TransformAction"),
        (
            "test/Named-v0",
            r"has observations Dict\(.*; a vector of one or more numbers is needed, .*FlattenObservation",
        ),
    ],
)
def test_envs_that_cannot_be_learned_are_refused_with_a_remedy(env: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asynchronous.make_envs(async_q.Config(env=env), 1, "x", None)


# ---- whole runs


def run(tmp_path: Path, name: str, /, resume: str | None = None, **changes: Any) -> Session:
    config = preset("paper", **{**TINY, "runs": tmp_path, "name": name, **changes})
    return async_q.train(config, resume_run=tmp_path / resume if resume else None)


@pytest.mark.parametrize(
    "changes", [{}, {"n_step": 1, "sarsa": True, "dueling": True}], ids=["n steps", "duelling sarsa"]
)
def test_equal_seeds_give_equal_runs_however_they_are_cut(
    tmp_path: Path, changes: dict[str, Any], session_seed: int
) -> None:
    whole = run(tmp_path, "whole", threads=2, **changes)
    cut = int(np.random.default_rng(session_seed).integers(1, 40)) * 10
    run(tmp_path, "cut", **{**changes, "steps": cut})
    resumed = run(tmp_path, "cut", resume="cut", **changes)

    assert whole.final_digest == resumed.final_digest, f"cut at {cut} steps"
    assert whole.updates == 40
    assert whole.final_digest != run(tmp_path, "other", seed=1, **changes).final_digest


def test_a_network_of_the_users_own_is_trained_by_its_name(tmp_path: Path) -> None:
    session = run(tmp_path, "own", network="own_network:tiny", steps=100)

    assert "policy.tiny.weight" in session.store.load(print).tensors
    with pytest.raises(ValueError, match=r"says \(2, 7\) of 2 observations of shape .* say \(2, 6\)"):
        run(tmp_path, "wide", network="own_network:too_wide")


def test_cartpole_is_learned_in_seconds(tmp_path: Path) -> None:
    async_q.train(
        preset(
            "classic", runs=tmp_path, name="cartpole", steps=50_000, evaluate_every_steps=0, log_every_steps=2_000,
            tensorboard=False,
        )
    )  # fmt: skip

    table = (tmp_path / "cartpole" / "metrics.csv").read_text().splitlines()
    column = table[0].split(",").index("return_mean_100")
    # A random policy gets 22. Q-learning forgets at times, hence the best.
    assert max(float(row.split(",")[column] or 0) for row in table[1:]) > 80
