"""The memory of batches: the caller's as long as an array is held, and used again after that."""

from __future__ import annotations

import resource
import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest
from written_replay import GAMMA, Written

import fastrl

FIELDS = ("obs", "action", "reward", "discount", "next_obs", "index", "weight")


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def written(**changes: Any) -> Written:
    made = Written(**changes)
    made.play(0, 40, seed=1)
    made.play(1, 40, seed=2)
    return made


def idle(made: fastrl.Replay) -> int:
    return int(made._lender.bank(False).idle)


@pytest.mark.parametrize("field", FIELDS)
def test_one_array_keeps_the_batch_it_is_of(field: str) -> None:
    made = written().replay
    kept = getattr(made.sample(16, 1, GAMMA), field)
    before = kept.copy()
    for _ in range(20):
        made.sample(16, 1, GAMMA)
    np.testing.assert_array_equal(kept, before)
    assert idle(made) == 1


def test_a_view_of_an_array_keeps_the_batch_too() -> None:
    made = written().replay
    kept = made.sample(16, 1, GAMMA).obs[3, 1:, :2]
    before = kept.copy()
    for _ in range(20):
        made.sample(16, 1, GAMMA)
    np.testing.assert_array_equal(kept, before)


def test_memory_is_used_again_when_its_batch_is_dropped() -> None:
    made = written().replay
    first = made.sample(16, 1, GAMMA)
    at = address(first.obs)
    second = made.sample(16, 1, GAMMA)
    assert address(second.obs) != at
    del first
    assert idle(made) == 1
    third = made.sample(16, 1, GAMMA)
    assert address(third.obs) == at
    assert idle(made) == 0


def test_batches_of_other_sizes_do_not_share_memory() -> None:
    made = written().replay
    made.sample(16, 1, GAMMA)
    batch = made.sample(16, 3, GAMMA)
    other = made.sample(32, 1, GAMMA)
    assert idle(made) == 1
    assert not np.shares_memory(batch.obs, other.obs)
    assert (batch.obs.shape, other.obs.shape) == ((16, 4, 3), (32, 4, 3))


def test_no_more_than_eight_buffers_lie_idle() -> None:
    made = written().replay
    held = [made.sample(4, 1, GAMMA) for _ in range(30)]
    held.clear()
    assert idle(made) == 8


def test_arrays_outlive_their_replay() -> None:
    made = written()
    batch = made.replay.sample(16, 1, GAMMA)
    before = [array.copy() for array in batch]
    made.writers.clear()
    del made
    for array, old in zip(batch, before, strict=True):
        np.testing.assert_array_equal(array, old)


def of_frames() -> fastrl.Replay:
    made = fastrl.Replay(2000, 1)
    with made.writer(0) as writer:
        writer.start(np.zeros((84, 84), np.uint8))
        for step in range(300):
            writer.append(0, 0.0, np.full((84, 84), step % 256, np.uint8), False, False)
    return made


def test_python_copies_no_frame() -> None:
    """Between the native part and the caller (tests/path_copies.cpp counts what lies before that)."""
    made = of_frames()
    kept = [made.sample(32) for _ in range(3)]
    kept.clear()
    tracemalloc.start()
    try:
        for _ in range(10):
            kept.append(made.sample(32))
            kept = kept[-2:]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"{peak} bytes allocated at most while batches of {32 * 5 * 7056} bytes were sampled")
    assert peak < 7056


def test_sampling_faults_no_pages_in() -> None:
    """What memory that is new each time costs: a fault every 4 KB, 276 for a batch of 32."""
    made = of_frames()
    for _ in range(5):
        made.sample(32)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(200):
        made.sample(32)
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before
    print(f"{faults / 200:.2f} page faults a batch")
    assert faults < 200


def test_threads_may_sample_at_once() -> None:
    made = written(capacity=96).replay
    problems: list[str] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        held: list[fastrl.Batch] = []
        for _ in range(400):
            held.append(made.sample(int(rng.choice([4, 8, 16])), 1, GAMMA))
            if len(held) > rng.integers(12):
                batch = held.pop(int(rng.integers(len(held))))
                # An observation says its lane and step.
                if not (
                    np.array_equal(batch.obs[:, -1, 0], batch.index[:, 0])
                    and np.array_equal(batch.next_obs[:, -1, 1], batch.index[:, 1] + 1)
                ):
                    problems.append("a batch was written over while it was held")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert made.stats()["batches"] == 1600


# ---- memory that a copy to a device may still be reading


class Event:
    """Like torch.cuda.Event, whose copy takes as long as the test wants."""

    def __init__(self) -> None:
        self.passed = False

    def query(self) -> bool:
        return self.passed


def lent_at(made: fastrl.Replay) -> list[int]:
    """Where batches lie that are held at once: all that is idle is among it."""
    return [address(batch.obs) for batch in [made.sample(16, 1, GAMMA) for _ in range(9)]]


def test_guarded_memory_comes_back_when_its_events_have_passed() -> None:
    made = written().replay
    batch = made.sample(16, 1, GAMMA)
    at, event, other = address(batch.obs), Event(), Event()
    batch.guard(event)
    batch.guard(other)
    del batch
    assert at not in lent_at(made)
    event.passed = True
    assert at not in lent_at(made)
    other.passed = True
    assert at in lent_at(made)


def test_guarded_memory_does_not_come_back_while_it_is_held() -> None:
    made = written().replay
    batch = made.sample(16, 1, GAMMA)
    at, event, before = address(batch.obs), Event(), batch.obs.copy()
    batch.guard(event)
    event.passed = True
    assert at not in lent_at(made)
    np.testing.assert_array_equal(batch.obs, before)
    del batch
    assert at in lent_at(made)


def test_an_event_that_fails_says_so_and_its_memory_stays_away() -> None:
    made = written().replay

    class Broken:
        def query(self) -> bool:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    batch = made.sample(16, 1, GAMMA)
    at = address(batch.obs)
    event: Any = Broken()
    batch.guard(event)
    del batch
    with pytest.raises(RuntimeError, match="an illegal memory access"):
        made.sample(16, 1, GAMMA)
    Broken.query = lambda self: False  # type: ignore[method-assign]
    assert at not in lent_at(made)
    Broken.query = lambda self: True  # type: ignore[method-assign]
    assert at in lent_at(made)


def test_what_cannot_guard_is_refused() -> None:
    made = written().replay
    with pytest.raises(TypeError, match=r"guard: 3 has no query\(\); give an event such as torch.cuda.Event"):
        made.sample(4, 1, GAMMA).guard(3)
    with pytest.raises(RuntimeError, match=r"guard: this batch lies in a buffer\(\)"):
        made.sample(4, 1, GAMMA, out=made.buffer(4)).guard(Event())


def test_pinned_buffers_hold_the_same() -> None:
    plain, pinned = written().replay, written().replay
    buffer = pinned.buffer(16, pin_memory=True)
    for _ in range(3):
        for ours, theirs in zip(plain.sample(16, 1, GAMMA), pinned.sample(16, 1, GAMMA, out=buffer), strict=True):
            np.testing.assert_array_equal(ours, theirs)
