"""Groups of games, as a GPU has them, here on the CPU: they learn what workers learn, in turn, and are saved."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scripted_envs import ScriptedEnvs, random_games, two_games
from tiny_training import TINY_PONG, preset

import fastrl
from fastrl import a3c, async_q
from fastrl.learn.flat import FlatNetwork
from fastrl.learn.hogwild import SharedParameters
from fastrl.learn.networks import build
from fastrl.runs import asynchronous
from fastrl.runs.device_groups import GroupWorker
from fastrl.runs.session import Session
from fastrl.runs.stages import StageClock
from fastrl.runs.traps import NonFiniteLoss

SMALL: dict[str, Any] = {"workers": 1, "envs_per_worker": 3, "learning_rate_steps": 100, "epsilon_frames": 1}
NETWORK: dict[str, Any] = {"torso": "a3c", "obs_shape": [4, 84, 84], "num_actions": 6}
KINDS: dict[str, tuple[ModuleType, dict[str, Any]]] = {
    "a3c": (a3c, {"t_max": 4, "max_gradient_norm": 0.5}),
    "n-step q": (async_q, {"n_step": 4}),
    "one-step q": (async_q, {"n_step": 1, "round_steps": 4}),
    "sarsa": (async_q, {"n_step": 1, "round_steps": 4, "sarsa": True}),
}


def shared_of(module: ModuleType, network: dict[str, Any], workers: int = 1) -> SharedParameters:
    first = FlatNetwork(build(network, [1])).values
    shared = SharedParameters(first.numel(), workers, module.RECIPE.copies)
    for vector in (shared.values, *shared.further):
        vector.copy_(first)
    return shared


def config_of(module: ModuleType, **changes: Any) -> Any:
    fields = {field.name for field in dataclasses.fields(module.Config)}
    return preset(module.TRAINER, "paper", **{name: value for name, value in changes.items() if name in fields})


def made(kind: str, what: str, envs: ScriptedEnvs, **changes: Any) -> Any:
    """A worker of either sort, at its beginning."""
    module, config = KINDS[kind]
    config = config_of(module, **{**SMALL, **config, **changes})
    network = {**NETWORK, "kind": module.RECIPE.kind}
    worker = getattr(module.RECIPE, what)(config, network, shared_of(module, network), 0, envs, "test")
    worker.start(None)
    return worker


def round_of(group: GroupWorker, steps_before: int) -> int:
    """One round, without beginning the next one."""
    group.turn(StageClock(), steps_before)
    while group.under_way:
        # Others have taken steps meanwhile: the rate is that of the round's beginning all the same.
        steps, _ = group.turn(StageClock(), steps_before + 12, begin=False)
    return steps


ROUNDS = 5


def apart(worker: Any, group: Any) -> float:
    """Both play their rounds; how far the values are from each other, as a part of their way."""
    began = worker.shared.values.clone()
    for number in range(ROUNDS):
        worker.round(12 * number)
        assert round_of(group, 12 * number) == 12
    moved = [each.shared.values - began for each in (worker, group)]
    return float((moved[0] - moved[1]).norm() / moved[0].norm())


def the_same_games() -> list[ScriptedEnvs]:
    games = [random_games(4 * ROUNDS, 3, (4, 84, 84), 6, seed=3) for _ in range(2)]
    assert sum(len(step.cut_obs) for step in games[0].steps) == 3
    assert sum(step.terminated.sum() for step in games[0].steps) == 3
    return games


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_learns_from_the_same_games_what_a_worker_learns(kind: str) -> None:
    """Its observations go through the network in other batches, so that sums are rounded otherwise."""
    games = the_same_games()
    worker, group = made(kind, "worker", games[0]), made(kind, "group", games[1])
    told = np.zeros(1 + len(worker.sums))
    play = worker.round

    def summing_up(steps: int) -> Any:
        found = play(steps)
        np.add(told, [1.0, *found[2]], out=told)
        return found

    worker.round = summing_up
    assert apart(worker, group) < 1e-4
    np.testing.assert_array_equal(np.array(games[0].actions), np.array(games[1].actions))
    np.testing.assert_allclose(group.summed(), told, rtol=1e-4)
    ours, theirs = worker.state(), group.state()
    assert ours["generator"] == theirs["generator"]
    assert (ours["rounds"], ours.get("chosen")) == (theirs["rounds"], theirs.get("chosen"))


@pytest.mark.parametrize("forgotten", ["cut", "cut_value", "terminated", "reward"])
def test_the_comparison_finds_what_does_not_reach_the_device(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    games = the_same_games()
    worker, group = made("n-step q", "worker", games[0]), made("n-step q", "group", games[1])
    bring = group.round.bring

    def bring_less() -> None:
        group.round.here[forgotten][:] = 0
        bring()

    monkeypatch.setattr(group.round, "bring", bring_less)
    assert apart(worker, group) > 1e-3


def test_a_gradient_that_is_not_finite_is_not_applied_and_is_told() -> None:
    group = made("a3c", "group", random_games(9, 3, (4, 84, 84), 6, seed=5))
    round_of(group, 0)
    before = group.shared.values.clone()
    group.round.here["reward"][:] = np.nan
    group.turn(StageClock(), 0)
    group.envs.steps[4] = dataclasses.replace(group.envs.steps[4], reward=np.full(3, np.nan, np.float32))
    while group.under_way:
        group.turn(StageClock(), 0, begin=False)
    assert torch.equal(group.shared.values, before)
    with pytest.raises(NonFiniteLoss, match="a gradient was not finite; the last checkpoint is from before"):
        group.summed()


def test_groups_take_turns_and_each_is_as_stale_as_there_are_others() -> None:
    config = config_of(a3c, **{**SMALL, "workers": 3, "t_max": 3, "envs_per_worker": 2})
    network = {"kind": "actor_critic", "torso": "mlp", "hidden_units": [8], "obs_shape": [1, 1], "num_actions": 2}
    shared = shared_of(a3c, network, workers=3)
    config = dataclasses.replace(config, network="mlp")
    groups = []
    for index in range(3):
        steps = two_games()
        envs = ScriptedEnvs(steps.first, [step for _ in range(4) for step in steps.steps[:3]], 2)
        groups.append(a3c.Group(config, network, shared, index, envs, f"test {index}"))
        groups[-1].start(None)
    rounds = []
    for _ in range(3 * 4):
        for group in groups:
            steps, _ = group.turn(StageClock(), 0)
            rounds.append(steps)
    assert sum(rounds) == 3 * 3 * 3 * 2
    assert shared.counts() == {"begun": 9, "done": 9, "lag": (0 + 1 + 2) + 2 * 3 * 2, "overlaps": 0, "refreshes": 0}


# ---- whole runs


def run(module: ModuleType, tmp_path: Path, name: str, resume: str | None = None, **changes: Any) -> Session:
    fixed = {**TINY_PONG, "workers": 2, "envs_per_worker": 2, "steps": 400, "log_every_steps": 100, **changes}
    config = config_of(module, **fixed, runs=tmp_path, name=name)
    session: Session = module.train(config, resume_run=tmp_path / resume if resume else None)
    return session


@pytest.mark.parametrize("module", [a3c, async_q])
def test_a_run_in_groups_is_logged_saved_and_gone_on_with(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asynchronous, "_in_groups", lambda config: True)
    first = run(module, tmp_path, "run", steps=200, checkpoint_every_steps=100)
    assert (first.steps, first.updates) == (200, 20)
    session = run(module, tmp_path, "run", resume="run")
    assert (session.steps, session.updates) == (400, 40)
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["steps"]) // 100 for row in rows] == [1, 2, 3, 4]
    assert all(float(row["lag_mean"]) == pytest.approx(1, abs=0.3) for row in rows)
    assert {"share/wait for games", "share/act", "share/learn"} <= rows[0].keys()
    assert fastrl.load(tmp_path / "run").act(np.zeros((4, 84, 84), np.uint8)) in range(6)

    # Workers in processes can go on with what groups saved, and the other way round.
    monkeypatch.setattr(asynchronous, "_in_groups", lambda config: False)
    assert run(module, tmp_path, "run", resume="run", steps=440).steps >= 440


def test_rounds_without_a_length_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asynchronous, "_in_groups", lambda config: True)
    with pytest.raises(ValueError, match="device: rounds of whole episodes have no length that a GPU"):
        run(a3c, tmp_path, "run", t_max=0, envs_per_worker=1)
    assert not list(tmp_path.iterdir())
