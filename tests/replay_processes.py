"""What other processes do with a replay in the tests: a module of its own, so that spawned children can import it."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Iterator, MutableSequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

import fastrl


def observation(lane: int, step: int) -> np.ndarray:
    return np.array([lane, step, 1000 * lane + step + 0.5], np.float32)


def scripted(lane: int, seed: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """What a writer is to do in a lane, step by step, for ever: the name of a method, and its arguments."""
    rng = np.random.default_rng([seed, lane])
    is_open = False
    for step in itertools.count():
        broken_off, terminated, truncated = (rng.random(3) < (0.03, 0.1, 0.1)).tolist()
        if not is_open or broken_off:
            is_open = True
            yield "start", (observation(lane, step),)
        else:
            is_open = not (terminated or truncated)
            yield "append", (step % 5, step / 7, observation(lane, step), terminated, truncated)


def write_paced(writer: fastrl.Writer, seed: int, limits: MutableSequence[int]) -> None:
    """Write as the script says, never a step from ``limits[lane]`` on, until that is negative."""
    parent = os.getppid()
    for name, arguments in scripted(writer.lane, seed):
        while (limit := limits[writer.lane]) <= writer.next_step:
            if limit < 0 or os.getppid() != parent:
                return
            time.sleep(1e-5)
        getattr(writer, name)(*arguments)


def paced_writers(limits: MutableSequence[int], told: Connection) -> None:
    """Writes one replay after another, each time the lane and the seed that it is told."""
    while (job := told.recv()) is not None:
        handle, lane, seed = job
        with fastrl.Replay.attach(handle).writer(lane) as writer:
            told.send("writing")
            write_paced(writer, seed, limits)
        told.send("done")


def attached_writer(handle: fastrl.ReplayHandle, said: Connection) -> None:
    made = fastrl.Replay.attach(handle)
    try:
        made.writer(0)
    except fastrl.LaneBusy as busy:
        said.send(str(busy))
    with made.writer(1) as writer:
        while (step := writer.next_step) < 30:
            if step in (0, 21):
                writer.start(observation(1, step))
            else:
                writer.append(step % 5, step / 7, observation(1, step), step == 20, False)
    said.send("done")
    said.recv()


def forked_use(made: fastrl.Replay, writer: fastrl.Writer, said: Connection) -> None:
    problems = []
    for call in (lambda: made.sample(1), lambda: made.writer(1), made.stats, made.handle):
        try:
            call()
            problems.append("allowed")
        except RuntimeError as error:
            problems.append(str(error))
    try:
        writer.start(observation(0, 0))
        problems.append("allowed")
    except RuntimeError as error:
        problems.append(str(error))
    said.send(problems)


def write_for_ever(handle: fastrl.ReplayHandle, said: Connection) -> None:
    writer = fastrl.Replay.attach(handle).writer(0)
    writer.start(observation(0, 0))
    said.send(os.getpid())
    while True:
        step = writer.next_step
        writer.append(step % 5, step / 7, observation(0, step), False, False)


def observe(handle: fastrl.ReplayHandle, said: Connection) -> None:
    """Does what it is told, by name, with an observer; says what came of it."""
    observer = fastrl.Replay.observe(handle)
    while (told := said.recv()) is not None:
        name, arguments = told
        try:
            found = getattr(observer, name)(*arguments)
            said.send(("result", found))
        except Exception as error:
            said.send((type(error).__name__, str(error)))
    observer.close()
    said.send(("closed", None))


def own_and_wait(said: Connection) -> None:
    """Makes a replay, writes 40 steps into lane 0, and lives until it is killed."""
    made = fastrl.Replay(200, 2, (3,), "float32", stack=2)
    writer = made.writer(0)
    writer.start(observation(0, 0))
    for step in range(1, 40):
        writer.append(step % 5, step / 7, observation(0, step), False, False)
    said.send(made.handle())
    said.recv()


def write_large_for_ever(handle: fastrl.ReplayHandle, said: Connection) -> None:
    writer = fastrl.Replay.attach(handle).writer(0)
    obs = np.zeros((1024, 1024), np.uint8)
    writer.start(obs)
    for _ in range(20):
        writer.append(0, 0.0, obs, False, False)
    said.send("writing")
    while True:
        writer.append(0, 0.0, obs, False, False)


def every_use(handle: fastrl.ReplayHandle, inherited: fastrl.Replay | None, said: Connection) -> None:
    """Everything that a process may do with a replay of another; what came of each."""
    results: dict[str, str] = {}
    made = fastrl.Replay.attach(handle)
    with tempfile.TemporaryDirectory() as directory:

        def write() -> None:
            with made.writer(1) as writer:
                writer.start(observation(1, 0))
                for step in range(1, 30):
                    writer.append(step % 5, step / 7, observation(1, step), False, False)

        def sample() -> None:
            batch = made.sample(64)
            assert np.array_equal(batch.obs[:, -1, 1], batch.index[:, 1])
            made.update_priorities(batch.index, np.ones(64))

        def prefetch() -> None:
            with made.prefetch(16) as prefetcher:
                prefetcher.request()
                assert len(prefetcher.take(timeout_s=30).reward) == 16

        def observe_it() -> None:
            with fastrl.Replay.observe(handle) as observer:
                assert observer.boundary() == [30, 30]

        def refuse_what_was_forked() -> None:
            if inherited is None:
                return
            found = []
            for call in (lambda: inherited.sample(1), lambda: inherited.prefetch(1), inherited.boundary):
                try:
                    call()
                    found.append("allowed")
                except RuntimeError as error:
                    found.append(str(error))
            assert all("forked" in one for one in found), found

        uses = {"write": write, "sample": sample, "prefetch": prefetch, "save": lambda: made.save(directory)}
        uses |= {"observe": observe_it, "forked handles": refuse_what_was_forked}
        for name, use in uses.items():
            try:
                use()
                results[name] = "ok"
            except Exception as error:
                results[name] = f"{type(error).__name__}: {error}"
    said.send(results)
