"""Games in other processes: they write what the learner draws, and the death of one ends nothing."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_training import TINY_PONG, preset

from fastrl import dqn
from fastrl.runs.actor_processes import ActorProcesses

TINY: dict[str, Any] = {
    **TINY_PONG,
    "num_envs": 3,
    "actor_processes": 2,
    "replay_capacity": 2_000,
    "warm_up_steps": 60,
    "batch": 8,
    "target_every_steps": 80,
    "steps": 300,
    "log_every_steps": 100,
}


@pytest.fixture
def actors() -> Any:
    made = ActorProcesses(
        "PongNoFrameskip-v4",
        3,
        2,
        2_000,
        protocol="sb3",
        threads=1,
        seed=3,
        replay_seed=4,
        alpha=None,
    )
    yield made
    made.close()


def gone(pid: int, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_every_step_of_every_game_is_recorded(actors: ActorProcesses) -> None:
    actors.start()
    for action in range(10):
        actors.send(np.full(3, action % 6))
        actors.receive()

    assert actors.replay.boundary() == [11, 11, 11]  # and the frame that each episode began with
    assert actors.stacks().any(axis=(1, 2, 3)).all()
    drawn = actors.replay.sample(64, 1, 0.99)
    by_step = {(int(lane), int(step)): int(a) for (lane, step), a in zip(drawn.index, drawn.action, strict=True)}
    assert all(action == step % 6 for (_, step), action in by_step.items())
    pids = actors.pids
    actors.close()
    assert all(gone(pid, 2) for pid in pids)


def test_a_killed_process_is_replaced_and_its_lanes_go_on(actors: ActorProcesses) -> None:
    actors.start()
    lost = []
    for step in range(30):
        if step in (10, 20):
            victim = step // 10 - 1
            lost.append(actors.pids[victim])
            os.kill(lost[-1], signal.SIGKILL)
        actors.send(np.zeros(3, np.int64))
        actors.receive()

    assert actors.deaths == 2
    assert not set(lost) & set(actors.pids)
    # 31 slots without a death; a death loses at most the step under way and begins an episode.
    assert all(30 <= end <= 32 for end in actors.replay.boundary())
    actors.replay.sample(64, 1, 0.99)


def test_a_stopped_process_is_named_and_then_replaced(
    actors: ActorProcesses, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    died = ActorProcesses._died

    def died_and_its_successor_has_longer(self: ActorProcesses, index: int) -> None:
        died(self, index)
        monkeypatch.setattr("fastrl.runs.actor_processes._ENDED_AFTER_S", 60.0)

    monkeypatch.setattr(ActorProcesses, "_died", died_and_its_successor_has_longer)
    actors.start()
    actors.send(np.zeros(3, np.int64))
    actors.receive()
    monkeypatch.setattr("fastrl.runs.actor_processes._TOLD_AFTER_S", 0.3)
    monkeypatch.setattr("fastrl.runs.actor_processes._ENDED_AFTER_S", 1.0)
    victim = actors.pids[1]
    os.kill(victim, signal.SIGSTOP)
    actors.send(np.zeros(3, np.int64))
    actors.receive()

    said = capsys.readouterr().out
    told = (
        rf"worker 1 is silent: lane 1: its writer, process {victim}, which is stopped .*, published the newest step, 1,"
    )
    assert re.search(told, said), said
    assert "worker 1 was silent for 1 s, and is ended" in said
    assert gone(victim, 5)
    assert actors.deaths == 1
    actors.send(np.zeros(3, np.int64))
    actors.receive()
    assert [end >= 3 for end in actors.replay.boundary()] == [True] * 3


def test_while_the_trainer_itself_is_stopped_nobody_is_silent(
    actors: ActorProcesses, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    actors.start()
    os.kill(actors.pids[0], signal.SIGSTOP)  # for a moment, so that it is waited for
    threading.Timer(0.5, os.kill, (actors.pids[0], signal.SIGCONT)).start()
    clock = itertools.count(0.0, 1000.0)  # as if this process were stopped whenever it listens
    monkeypatch.setattr("fastrl.runs.actor_processes.time.monotonic", lambda: next(clock))
    actors.send(np.zeros(3, np.int64))
    actors._wait()
    monkeypatch.undo()

    assert "silent" not in capsys.readouterr().out
    assert actors.deaths == 0


def test_a_stop_does_not_wait_for_a_stopped_process(actors: ActorProcesses) -> None:
    actors.start()
    os.kill(actors.pids[0], signal.SIGSTOP)
    actors.stop_wished = lambda for_s: True
    actors.send(np.zeros(3, np.int64))
    began_s = time.monotonic()
    actors.receive()

    assert 0.9 < time.monotonic() - began_s < 4
    assert actors.deaths == 0


def test_a_run_goes_on_when_a_process_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = preset(dqn.TRAINER, "fast", **TINY, runs=tmp_path, name="killed")
    receive = ActorProcesses.receive
    rounds = iter(range(10_000))

    def with_deaths(self: ActorProcesses) -> Any:
        if next(rounds) in (30, 60):
            os.kill(self.pids[0], signal.SIGKILL)
        return receive(self)

    monkeypatch.setattr(ActorProcesses, "receive", with_deaths)
    session = dqn.train(config)

    assert session.run.finished
    assert session.steps == 300
    assert session.updates == (300 - 60) // 4
    assert session.envs.deaths == 2  # type: ignore[union-attr,attr-defined]


def test_a_run_that_goes_on_plays_other_games(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = preset(dqn.TRAINER, "fast", **{**TINY, "steps": 80}, runs=tmp_path, name="two")
    seeds = []

    class Seen(ActorProcesses):
        def __init__(self, *given: Any, seed: int, **more: Any) -> None:
            seeds.append(seed)
            super().__init__(*given, seed=seed, **more)

    monkeypatch.setattr(dqn, "ActorProcesses", Seen)
    first = dqn.train(config)
    dqn.train(dataclasses.replace(config, steps=120), resume_run=first.run.path, without_replay=True)

    assert seeds[0] != seeds[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deterministic": True}, "so --deterministic refuses them"),
        ({"actor_processes": 4}, r"4 is outside \[1, 3\]"),
        ({"env": "CartPole-v1", "network": "mlp"}, "are for Atari games"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = preset(dqn.TRAINER, "fast", **{**TINY, **changes}, runs=tmp_path)

    with pytest.raises(ValueError, match=message):
        dqn.train(config)
