"""Inserts and samples of the replay beside those of cpprb, Stable-Baselines3 and Tianshou.

Frames of 84x84, stacks of four, batches of one-step transitions; every replay is larger than the caches and full before
anything is timed. The limit of a sample is a memcpy of as many runs of five frames from random places of an array of
the same size, on huge pages like the replay, which none that stores a frame once can beat. The limit of an insert is a
memcpy of a frame to the next place of such an array. Peers sample their own way: what they return is an observation and
its successor, stacked.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from full_replay import FRAMES, frames, full, sb3_buffer, write_at_pool_speed

import fastrl
from fastrl.engine import native
from fastrl.engine.budget import available_memory_bytes, usable_cores

FRAME_BYTES = 84 * 84
RUN = 5  # frames that a transition of stacks of four touches
FRESH_BATCHES = 4096


def number_of(frame: np.ndarray) -> int:
    return int(np.ascontiguousarray(frame[0, :4]).view(np.uint32)[0])


def check_answer(made: fastrl.Replay, batch: int) -> None:
    found = made.sample(batch)
    for row, (_, step) in enumerate(found.index.tolist()):
        shown = [number_of(frame) for frame in (*found.obs[row], found.next_obs[row, -1])]
        assert shown == [(step + i) % FRAMES for i in range(-3, 2)]
        assert found.action[row] == (step + 1) % 4
        assert found.reward[row] == (step + 1) % 7


def check_answer_of_any(made: fastrl.Replay, batch: int) -> None:
    """Also where the frames' numbers began anew: those of a transition follow each other."""
    found = made.sample(batch)
    for row in range(batch):
        shown = [number_of(frame) for frame in (*found.obs[row], found.next_obs[row, -1]) if frame.any()]
        assert all((later - earlier) % FRAMES == 1 for earlier, later in itertools.pairwise(shown))


def memcpy_limit(slots: int, batch: int) -> Callable[[], None]:
    """Runs of five frames out of an array of ``slots`` frames.

    Its places are as fresh as a sample's: a few dozen batches drawn again and again find their pages' addresses in the
    caches, which makes them up to a third faster.
    """
    memory = np.ones(slots * FRAME_BYTES, np.uint8)
    starts = np.random.default_rng(0).integers(slots - RUN, size=(FRESH_BATCHES, batch))
    out = np.empty(batch * RUN * FRAME_BYTES, np.uint8)
    turn = iter(range(10**9))

    def run() -> None:
        native.core.copy_runs(memory, starts[next(turn) % FRESH_BATCHES], RUN * FRAME_BYTES, FRAME_BYTES, out)

    return run


def frames_copied(slots: int, count: int) -> Callable[[], None]:
    """The next ``count`` frames into an array of ``slots``, round and round."""
    shown = frames().reshape(-1)
    memory = np.ones(slots * FRAME_BYTES, np.uint8)  # written once, so that its pages are there
    rows = memory[: slots // count * count * FRAME_BYTES].reshape(-1, count * FRAME_BYTES)
    starts = np.arange(count, dtype=np.int64) % FRAMES
    turn = iter(range(10**9))

    def run() -> None:
        native.core.copy_runs(shown, starts, FRAME_BYTES, FRAME_BYTES, rows[next(turn) % len(rows)])

    return run


def check_copy(count: int) -> None:
    """The limit really writes these frames."""
    out = np.empty(count * FRAME_BYTES, np.uint8)
    native.core.copy_runs(
        frames().reshape(-1), np.arange(count, dtype=np.int64) % FRAMES, FRAME_BYTES, FRAME_BYTES, out
    )
    assert np.array_equal(out.reshape(count, 84, 84), frames()[np.arange(count) % FRAMES])


# ---- peers: something to insert with and something to sample with, full


def sb3(capacity: int) -> tuple[Callable[[], None], Callable[[int], Any]]:
    buffer, step = sb3_buffer(min(capacity, 20_000))  # it stores stacks: 28,224 bytes each
    return lambda: buffer.add(*step), buffer.sample


def cpprb(capacity: int) -> tuple[Callable[[], None], Callable[[int], Any]]:
    import cpprb as library

    layout = {"obs": {"shape": (84, 84, 4), "dtype": np.uint8}, "act": {"dtype": np.int64}, "rew": {}, "done": {}}
    buffer = library.ReplayBuffer(capacity, layout, next_of="obs", stack_compress="obs")
    stack = np.moveaxis(frames()[:4], 0, -1).copy()
    step = {"obs": stack, "act": 0, "rew": 0.0, "next_obs": stack, "done": 0.0}
    for _ in range(capacity):
        buffer.add(**step)
    return lambda: buffer.add(**step), buffer.sample


def tianshou(capacity: int) -> tuple[Callable[[], None], Callable[[int], Any]]:
    from tianshou.data import Batch, ReplayBuffer

    size = min(capacity, 20_000)  # it takes 40 us to insert one
    buffer = ReplayBuffer(size, stack_num=4, ignore_obs_next=True, save_only_last_obs=True)
    frame = frames()[:1]
    step = Batch(obs=frame, act=0, rew=0.0, terminated=False, truncated=False, obs_next=frame, info={})
    for _ in range(size):
        buffer.add(step)
    return lambda: buffer.add(step), buffer.sample


PEERS = {"cpprb": cpprb, "SB3": sb3, "Tianshou": tianshou}


def times(call: Callable[[], Any], count: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            call()

    return run


# ---- contests


@pytest.mark.parametrize("into", ["memory of its own", "out"])
@pytest.mark.parametrize("batch", [32, 512])
def test_sample_speed(contest: Any, batch: int, into: str, quick: bool) -> None:
    if quick and batch != 32:
        pytest.skip("--quick times one size")
    capacity, count, rounds = (3000, 5, 2) if quick else (100_000, 4000 // batch, 9)
    made = full(capacity)
    check_answer(made, 64)
    # A batch of its own stays the caller's; a buffer that is given is drawn into again, as the memcpy's is.
    buffer = made.buffer(batch) if into == "out" else None
    match = contest(
        f"replay, samples of {batch}{' into a buffer' if buffer else ''}", "batches/s", count, limit="memcpy"
    )
    others = {"memcpy": times(memcpy_limit(made.capacity, batch), count)}
    for name, (_, sample) in match.peers(PEERS, capacity).items():
        others[name] = times(lambda sample=sample: sample(batch), count)
    match.run(times(lambda: made.sample(batch, out=buffer), count), others, rounds)


def test_insert_speed(contest: Any, quick: bool) -> None:
    capacity, count, rounds = (3000, 100, 2) if quick else (100_000, 5000, 9)
    made = full(capacity)
    check_answer(made, 64)
    shown = frames()
    check_copy(count)
    match = contest("replay, inserts", "steps/s", count, limit="memcpy")
    others = {"memcpy": frames_copied(capacity, count)}
    others |= {name: times(insert, count) for name, (insert, _) in match.peers(PEERS, capacity).items()}
    with made.writer(0) as writer:
        writer.start(shown[0])
        turn = iter(range(10**9))
        match.run(times(lambda: writer.append(1, 0.5, shown[next(turn) % FRAMES], False, False), count), others, rounds)


@pytest.mark.parametrize("batch", [32, 512])
def test_learner_path_with_prefetch(contest: Any, batch: int, quick: bool) -> None:
    """What a batch costs the learner: request and take, between which it does something else for longer than a draw."""
    capacity, count, rounds = (3000, 5, 2) if quick else (100_000, 2000 // batch, 9)
    made = full(capacity)
    check_answer(made, 64)
    began = time.perf_counter()
    for _ in range(20):
        made.sample(batch)
    learning_s = 3 * (time.perf_counter() - began) / 20
    spent: dict[str, list[float]] = {"request": [], "take": []}

    def spend(name: str, call: Callable[[], Any]) -> float:
        began = time.perf_counter()
        call()
        spent[name].append(time.perf_counter() - began)
        return spent[name][-1]

    with made.prefetch(batch, depth=2) as prefetcher:

        def prefetched() -> float:
            total = 0.0
            for _ in range(count):
                total += spend("request", prefetcher.request)
                until = time.perf_counter() + learning_s
                while time.perf_counter() < until:
                    pass
                total += spend("take", prefetcher.take)
            return total

        match = contest(f"replay, batches of {batch} on the learner's path", "batches/s", count)
        match.run(prefetched, {"sample": times(lambda: made.sample(batch), count)}, rounds)
    for name, seconds in spent.items() if not quick else ():  # of so few batches they say nothing
        worst = sorted(seconds)[int(0.99 * len(seconds))]
        match.notes.append(f"{name} {1e6 * statistics.median(seconds):.1f} us, 99 of 100 below {1e6 * worst:.1f} us")


@pytest.mark.parametrize("writers", [1, 2, 4])
def test_sample_speed_beside_writers(contest: Any, writers: int, quick: bool) -> None:
    """Sampling while writers run, as a share of its speed while they are stopped; and likewise what they keep."""
    capacity, count, rounds = (3000, 5, 2) if quick else (50_000, 1000, 9)
    made = full(capacity, lanes=writers)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    processes = [
        context.Process(target=write_at_pool_speed, args=(made.handle(), lane, there), daemon=True)
        for lane in range(writers)
    ]
    for process in processes:
        process.start()
    there.close()  # so that a writer which dies is the end of the line, not a wait without one
    pids = [here.recv() for _ in processes]
    written: dict[str, list[float]] = {"alone": [], "beside": []}  # steps/s of all writers

    def signal_all(number: int) -> None:
        for pid in pids:
            os.kill(pid, number)

    def writing(name: str, meanwhile: Callable[[], Any]) -> float:
        before = sum(made.boundary())
        began = time.perf_counter()
        signal_all(signal.SIGCONT)
        meanwhile()
        took = time.perf_counter() - began
        signal_all(signal.SIGSTOP)
        written[name].append((sum(made.boundary()) - before) / took)
        return took

    sample = times(lambda: made.sample(32), count)

    def beside() -> float:
        writing("alone", lambda: time.sleep(0.02 if quick else 0.15))
        return writing("beside", sample)

    try:
        signal_all(signal.SIGSTOP)
        check_answer_of_any(made, 64)
        match = contest(
            f"replay, samples of 32 beside {writers} writer{'' if writers == 1 else 's'}", "batches/s", count
        )
        match.run(beside, {"alone": sample}, rounds)
        if not quick:  # in its few milliseconds writers hardly take a step
            shares = [beside / alone for alone, beside in zip(*written.values(), strict=True)]
            match.notes.append(
                f"the writers keep {statistics.median(shares):.2f} of their speed alone "
                f"({statistics.median(written['alone']):,.0f} steps/s); {usable_cores()} cores for "
                f"{writers + 1} busy threads; {made.stats()['race_rejects']} rows drawn again"
            )
    finally:
        for process in processes:
            process.kill()
            process.join()


def test_sample_speed_of_a_full_million(contest: Any, quick: bool) -> None:
    """The paper's memory, really filled."""
    if quick:
        pytest.skip("--quick fills nothing large")
    if available_memory_bytes() < 16_000_000_000:
        pytest.skip(
            f"a full million and the limit beside it need 16 GB, {available_memory_bytes() / 1e9:.1f} are available"
        )
    made = full(1_000_000, lanes=8)
    check_answer(made, 64)
    match = contest("replay of 1,000,000, samples of 32", "batches/s", 200, limit="memcpy")
    match.run(times(lambda: made.sample(32), 200), {"memcpy": times(memcpy_limit(made.capacity, 32), 200)}, rounds=7)
