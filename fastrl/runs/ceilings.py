"""What each part of a training could do if it were alone, in steps a second."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrl.engine.replay import Replay
from fastrl.runs.metrics import MetricsLog

_REPEATS = 5
_LOGGED_NUMBERS = 30  # in a row of metrics.csv


@dataclass(frozen=True)
class Stage:
    """One part, as something that can be done again and again.

    Attributes:
        name: of it.
        does: what it is, for people.
        task: does it once.
        steps: that doing it once is for.
        counted_s: what counts of the last time that it was done; None: all of it.
        part_of: the stage that does it too, whose time has this one's in it; None: there is none.
    """

    name: str
    does: str
    task: Callable[[], object]
    steps: float
    counted_s: Callable[[], float] | None = None
    part_of: str | None = None


@dataclass(frozen=True)
class Alone:
    """What came of a stage that was done alone; the rest is as in :class:`Stage`."""

    steps_per_s: float
    does: str
    part_of: str | None = None


def ceiling(stage: Stage, seconds: float) -> float:
    """Steps a second if nothing else were to be done: a median over repeats that take so many seconds in all."""
    stage.task()
    rates = []
    for _ in range(_REPEATS):
        began, done, counted_s = time.perf_counter(), 0, 0.0
        while (took_s := time.perf_counter() - began) < seconds / _REPEATS or not done:
            stage.task()
            done += 1
            counted_s += stage.counted_s() if stage.counted_s is not None else 0.0
        rates.append(done * stage.steps / (took_s if stage.counted_s is None else counted_s))
    return statistics.median(rates)


def transferring(draw: Callable[[], Any], transfer: Callable[[Any], Any], does: str, **of_stage: Any) -> Stage:
    """Bringing batches to where they are learned from: a new one each time, whose drawing does not count."""
    took_s = 0.0

    def task() -> None:
        nonlocal took_s
        drawn = draw()
        began = time.perf_counter()
        transfer(drawn)
        took_s = time.perf_counter() - began

    return Stage("transfer", does, task, counted_s=lambda: took_s, **of_stage)


def synchronised(task: Callable[..., Any], device: Any) -> Callable[..., Any]:
    """``task``, over only when the device is through with it: a GPU is merely told what to do by the call itself."""
    import torch

    if device.type != "cuda":
        return task

    def whole(*given: Any) -> Any:
        found = task(*given)
        torch.cuda.synchronize(device)
        return found

    return whole


def recording(replay: Replay) -> Stage:
    """Writing such observations into a replay, from Python; a pool's threads write theirs where they are made."""
    other = Replay(
        1024 * replay.lanes, replay.lanes, replay.obs_shape, replay.obs_dtype, replay.stack, padding=replay.padding
    )
    writer = other.writer(0)
    obs = np.zeros(replay.obs_shape, replay.obs_dtype)
    writer.start(obs)

    def write() -> None:
        writer.append(0, 0.0, obs, False, False)

    return Stage("record", "a frame and its step into the replay, with a copy, by one thread", write, 1)


@contextlib.contextmanager
def logging(folder: Path, every_steps: int, tensorboard: bool) -> Iterator[Stage]:
    """Writing rows of the log into ``folder``."""
    log = MetricsLog(folder / "metrics.csv", folder / "tensorboard" if tensorboard else None)
    values = {f"number {i}": i / 7 for i in range(_LOGGED_NUMBERS)}
    written = iter(range(10**9))

    def write() -> None:
        count = next(written)
        log.write({"frames": 4 * count, "steps": count, "updates": count, "wall_s": float(count), **values})

    try:
        yield Stage("log", f"a row of metrics every {every_steps:,} steps", write, every_steps)
    finally:
        log.close()


def random_actions(envs: Any, rng: np.random.Generator) -> Any:
    """For recorded envs, of either kind of action."""
    if envs.num_actions:
        return rng.integers(envs.num_actions, size=envs.num_envs)
    return rng.uniform(-1, 1, (envs.num_envs, *envs.action_space.shape)).astype(np.float32)
