"""Prefetched batches: those that `sample` returns, drawn meanwhile; and every way in which that may end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from written_replay import GAMMA, Written, small_replay

import fastrl


def written(steps: int = 40, **changes: Any) -> Written:
    made = Written(**changes)
    made.play(0, steps, seed=1)
    made.play(1, steps, seed=2)
    return made


def as_lists(batch: fastrl.Batch) -> list[Any]:
    return [array.tolist() for array in batch]


def new_priorities(batch: fastrl.Batch) -> np.ndarray:
    return np.abs(batch.obs[:, -1, 2]) % 7 + batch.reward**2


@pytest.fixture(scope="module")
def slow() -> fastrl.Replay:
    """A replay with one transition in 200,000 steps: drawing 1,000 of it takes minutes."""
    made = fastrl.Replay(200_000, 1, (1,), "uint8", stack=1)
    with made.writer(0) as writer:
        for _ in range(150_000):
            writer.start(np.zeros(1, np.uint8))
        writer.append(1, 1.0, np.ones(1, np.uint8), False, False)
    return made


# ---- what is drawn


@pytest.mark.parametrize("alpha", [None, 0.6])
@pytest.mark.parametrize("n_step", [1, 3])
def test_batches_are_those_that_sample_returns(alpha: float | None, n_step: int) -> None:
    """Bit for bit, over several boundaries with writing and new priorities between and meanwhile."""
    ours, theirs = written(alpha=alpha), written(alpha=alpha)
    with ours.replay.prefetch(16, depth=4, n_step=n_step, gamma=GAMMA, beta=0.5) as prefetcher:
        for turn in range(12):
            boundary = ours.replay.boundary()
            for _ in range(4):
                prefetcher.request(boundary)
            expected = [theirs.replay.sample(16, n_step, GAMMA, boundary=boundary, beta=0.5) for _ in range(4)]
            for made in (ours, theirs):  # within the guard: in-flight steps of a lockstep trainer
                for lane in (0, 1):
                    made.play(lane, 3 + turn % 2, seed=turn)
            for wanted in expected:
                batch = prefetcher.take()
                assert as_lists(batch) == as_lists(wanted)
                if alpha is not None:
                    prefetcher.update_priorities(batch.index, new_priorities(batch))
                    theirs.replay.update_priorities(wanted.index, new_priorities(wanted))
    of_the_moment = {"lanes_written": 0, "silent_s": 0}
    assert ours.replay.stats() | of_the_moment == theirs.replay.stats() | of_the_moment


def test_a_batch_knows_the_priorities_that_were_given_before_it_was_requested() -> None:
    made = written(alpha=1.0).replay
    with made.prefetch(64, depth=3, gamma=GAMMA, beta=1.0) as prefetcher:
        prefetcher.request()
        before = prefetcher.take()
        prefetcher.request()
        one = before.index[:1]
        prefetcher.update_priorities(one, [1e6])
        prefetcher.request()
        without, with_it = prefetcher.take(), prefetcher.take()
    assert (without.index == one).all(axis=1).sum() < 20
    assert (with_it.index == one).all(axis=1).all()


def test_closing_loses_no_priorities() -> None:
    made = written(alpha=1.0).replay
    one = made.sample(1, 1, GAMMA).index
    for _ in range(20):
        other = made.sample(64, 1, GAMMA).index
        with made.prefetch(16, gamma=GAMMA) as prefetcher:
            prefetcher.request()
            prefetcher.update_priorities(other, np.zeros(64))
            prefetcher.update_priorities(one, [1e6])
        assert (made.sample(64, 1, GAMMA).index == one).all()
        made.update_priorities(one, [0.0])


def test_a_batch_sees_what_was_published_when_it_was_requested() -> None:
    made = Written()
    made.play(0, 12, seed=1)
    with made.replay.prefetch(200, gamma=GAMMA) as prefetcher:
        prefetcher.request()
        made.play(0, 6, seed=2)
        prefetcher.request()
        assert prefetcher.take().index[:, 1].max() < 12
        assert prefetcher.take().index[:, 1].max() >= 12


def test_the_replay_keeps_to_the_order() -> None:
    """sample and update_priorities beside a prefetcher come after what was asked there."""
    ours, theirs = written(alpha=0.6), written(alpha=0.6)
    boundary = ours.replay.boundary()
    with ours.replay.prefetch(16, depth=2, gamma=GAMMA) as prefetcher:
        prefetcher.request(boundary)
        direct = ours.replay.sample(16, 1, GAMMA, boundary=boundary)
        ours.replay.update_priorities(direct.index, new_priorities(direct))
        last = ours.replay.sample(16, 1, GAMMA, boundary=boundary)
        found = [as_lists(batch) for batch in (prefetcher.take(), direct, last)]
    first = theirs.replay.sample(16, 1, GAMMA, boundary=boundary)
    second = theirs.replay.sample(16, 1, GAMMA, boundary=boundary)
    theirs.replay.update_priorities(second.index, new_priorities(second))
    third = theirs.replay.sample(16, 1, GAMMA, boundary=boundary)
    assert found == [as_lists(batch) for batch in (first, second, third)]


def test_taken_batches_stay_valid_and_dropped_ones_are_used_again() -> None:
    made = written().replay
    with made.prefetch(16, depth=1, gamma=GAMMA) as prefetcher:
        prefetcher.request()
        kept = prefetcher.take()
        before = as_lists(kept)
        addresses = set()
        for _ in range(20):
            prefetcher.request()
            addresses.add(prefetcher.take().obs.__array_interface__["data"][0])
    assert as_lists(kept) == before
    assert len(addresses) <= 2


def test_a_run_goes_on_from_a_save_beside_a_prefetcher(tmp_path: Any) -> None:
    made = written(alpha=0.6).replay
    with made.prefetch(16, depth=2, gamma=GAMMA) as prefetcher:
        prefetcher.request()
        with pytest.raises(RuntimeError, match="save: 1 batches were asked for and not taken"):
            made.save(tmp_path)
        batch = prefetcher.take()
        prefetcher.update_priorities(batch.index, new_priorities(batch))
        made.save(tmp_path)  # knows these priorities
        prefetcher.request()
        expected = as_lists(prefetcher.take())
    again = small_replay(alpha=0.6)
    again.load(tmp_path)
    with again.prefetch(16, gamma=GAMMA) as prefetcher:
        prefetcher.request()
        assert as_lists(prefetcher.take()) == expected


def test_pinned_batches_hold_the_same() -> None:
    ours, theirs = written().replay, written().replay
    with ours.prefetch(16, gamma=GAMMA, pin_memory=True) as prefetcher:
        for _ in range(3):
            prefetcher.request()
            assert as_lists(prefetcher.take()) == as_lists(theirs.sample(16, 1, GAMMA))


class Event:
    """Like torch.cuda.Event, whose copy takes as long as the test wants."""

    passed = False

    def query(self) -> bool:
        return self.passed


def test_a_pinned_buffer_comes_back_after_its_event() -> None:
    made = written().replay
    with made.prefetch(16, depth=1, gamma=GAMMA, pin_memory=True) as prefetcher:
        prefetcher.request()
        batch = prefetcher.take()
        at, event = batch.obs.__array_interface__["data"][0], Event()
        batch.guard(event)
        del batch

        def next_address() -> int:
            prefetcher.request()
            return int(prefetcher.take().obs.__array_interface__["data"][0])

        assert at not in [next_address() for _ in range(5)]
        event.passed = True
        assert next_address() == at


# ---- what goes wrong arrives where it is waited for


def test_nothing_to_sample_arrives_in_take() -> None:
    made = Written()
    empty = made.replay.boundary()
    with made.replay.prefetch(4, gamma=GAMMA) as prefetcher:
        prefetcher.request()
        made.play(0, 10)
        prefetcher.request(empty)
        # What the first says of it depends on whether its thread looked before anything was played.
        nothing = "the replay is empty; write transitions first|nothing was written up to the boundary; take"
        with pytest.raises(fastrl.NothingToSample, match=nothing):
            prefetcher.take()
        prefetcher.request()
        with pytest.raises(fastrl.NothingToSample, match="nothing was written up to the boundary; take"):
            prefetcher.take()
        assert len(prefetcher.take().reward) == 4


@pytest.mark.parametrize("alpha", [None, 0.6])
def test_a_boundary_that_was_overtaken_arrives_in_take(alpha: float | None) -> None:
    made = written(alpha=alpha)
    boundary = made.replay.boundary()
    made.play(0, 60, seed=3)
    made.play(1, 60, seed=4)
    with made.replay.prefetch(4, gamma=GAMMA) as prefetcher:
        prefetcher.request(boundary)
        with pytest.raises(RuntimeError, match="the writers came round all lanes"):
            prefetcher.take()
        prefetcher.request()
        prefetcher.take()


def test_priorities_before_any_draw_arrive_with_the_next_batch() -> None:
    made = written(alpha=0.5).replay
    with made.prefetch(4, gamma=GAMMA) as prefetcher:
        prefetcher.update_priorities(np.zeros((1, 2), np.int64), [1.0])
        prefetcher.request()
        with pytest.raises(RuntimeError, match="update_priorities: nothing was sampled by priority yet"):
            prefetcher.take()
        prefetcher.request()
        prefetcher.take()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: p.take(), RuntimeError, r"take: no batch was asked for; call request\(\) first"),
        (lambda p: p.take(timeout_s=-1), ValueError, "take: timeout_s -1 is not a number of seconds"),
        (lambda p: p.request(beta=2), ValueError, "request: beta 2 is outside"),
        (lambda p: p.request([1]), ValueError, "the boundary is of 1 lanes, the replay has 2"),
        (lambda p: p.request([99, 0]), ValueError, "lane 0 is step 99, but only"),
        (
            lambda p: [p.request() for _ in range(3)],
            RuntimeError,
            "request: 2 batches were asked for and not taken, and depth is 2",
        ),
        (lambda p: p.update_priorities(np.zeros((1, 2), np.int64), [1.0]), RuntimeError, "draws uniformly"),
        (lambda p: (p.close(), p.request()), RuntimeError, "request: the prefetcher is closed; make another one"),
        (lambda p: (p.request(), p.close(), p.take()), RuntimeError, "take: the prefetcher is closed"),
    ],
)
def test_wrong_calls_are_refused(call: Any, error: type[Exception], message: str) -> None:
    with written().replay.prefetch(4, depth=2) as prefetcher, pytest.raises(error, match=message):
        call(prefetcher)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "batch: 0 is outside"),
        ({"batch": 4, "depth": 0}, "prefetch: depth: 0 is outside"),
        ({"batch": 4, "n_step": 99}, "n_step: 99 is outside"),
        ({"batch": 4, "gamma": 2}, "prefetch: gamma 2 is outside"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_replay().prefetch(**arguments)


def test_a_replay_has_one_prefetcher_at_a_time() -> None:
    made = written().replay
    first = made.prefetch(4)
    with pytest.raises(RuntimeError, match=r"has a prefetcher already; close\(\) that one first"):
        made.prefetch(4)
    first.close()
    first.close()
    second = made.prefetch(4)
    del second  # ends its thread too
    made.prefetch(4).close()


# ---- waits and ends


def test_take_gives_up_in_time_and_the_batch_stays(slow: fastrl.Replay) -> None:
    with slow.prefetch(2) as prefetcher:
        prefetcher.request()
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"take: no batch after 0\.05"):
            prefetcher.take(timeout_s=0.05)
        waited = time.monotonic() - began
        assert 0.04 < waited < 1
        assert prefetcher.pending == 1
        assert prefetcher.take(timeout_s=60).reward.tolist() == [1.0] * 2


@pytest.mark.parametrize("call", ["take", "drain"])
def test_a_signal_interrupts_a_wait_and_nothing_is_lost(slow: fastrl.Replay, call: str) -> None:
    with slow.prefetch(1000) as prefetcher:
        prefetcher.request()
        sent = 0.0

        def interrupt() -> None:
            nonlocal sent
            time.sleep(0.2)
            sent = time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)

        def wait() -> None:
            threading.Thread(target=interrupt).start()
            getattr(prefetcher, call)()

        with pytest.raises(KeyboardInterrupt):
            wait()
        assert time.monotonic() - sent < 1
        assert prefetcher.pending == 1


def test_closing_ends_a_draw_and_whoever_waits_for_it(slow: fastrl.Replay) -> None:
    prefetcher = slow.prefetch(1000)
    prefetcher.request()
    said: list[BaseException] = []

    def wait() -> None:
        try:
            prefetcher.take()
        except BaseException as error:
            said.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    began = time.monotonic()
    prefetcher.close()
    thread.join(5)
    assert time.monotonic() - began < 1
    assert "take: the prefetcher is closed" in str(said[0])


def test_closing_disturbs_no_other_thread_that_samples() -> None:
    """The replay waits for what its prefetcher was asked for; one that is closed meanwhile owes nothing."""
    made = Written()
    made.play(0, 50)
    closed = threading.Event()
    said: list[BaseException] = []

    def sample() -> None:
        try:
            while not closed.is_set():
                made.replay.sample(4, gamma=GAMMA)
        except BaseException as error:
            said.append(error)

    threads = [threading.Thread(target=sample) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            with made.replay.prefetch(64, gamma=GAMMA) as prefetcher:
                prefetcher.request()
    finally:
        closed.set()
        for thread in threads:
            thread.join(30)
    assert said == []


PREAMBLE = """
import os, signal, sys, threading, time
import numpy as np, fastrl
made = fastrl.Replay(200_000, 1, (1,), "uint8", stack=1)
writer = made.writer(0)
for _ in range(50_000):
    writer.start(np.zeros(1, np.uint8))
writer.append(1, 1.0, np.ones(1, np.uint8), False, False)
prefetcher = made.prefetch({batch}, depth=3)
"""

ENDS = {
    "idle": "",
    "drawing": "prefetcher.request()",
    "drawn": "prefetcher.request(); prefetcher.drain()",
    "queued": "[prefetcher.request() for _ in range(3)]",
    "a batch is held": "prefetcher.request(); batch = prefetcher.take()",
    "exception": "prefetcher.request(); raise ValueError('on purpose')",
    "sys.exit": "prefetcher.request(); sys.exit(3)",
    "a thread waits": "prefetcher.request(); threading.Thread(target=prefetcher.take, daemon=True).start(); "
    "time.sleep(0.2)",
    "the replay went first": "prefetcher.request(); del made",
    "SIGTERM": "prefetcher.request(); signal.signal(signal.SIGTERM, lambda *_: sys.exit(4)); "
    "os.kill(os.getpid(), signal.SIGTERM); prefetcher.take()",
    "Ctrl-C": "prefetcher.request(); threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start(); "
    "prefetcher.take()",
}
CODES = {"exception": 1, "sys.exit": 3, "SIGTERM": 4, "Ctrl-C": -signal.SIGINT}


@pytest.mark.parametrize("state", ENDS)
def test_python_ends_with_a_live_prefetcher(state: str) -> None:
    batch = 1 if state in ("drawn", "a batch is held") else 100_000
    code = PREAMBLE.format(batch=batch) + ENDS[state]
    began = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd="/")
    assert result.returncode == CODES.get(state, 0), result.stderr
    assert time.monotonic() - began < 15


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_what_was_forked_says_so_and_ends(slow: fastrl.Replay) -> None:
    with slow.prefetch(1000) as prefetcher:
        prefetcher.request()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            problems = []
            for call in (prefetcher.request, prefetcher.take, lambda: slow.sample(1), prefetcher.close):
                try:
                    call()
                    problems.append("allowed")
                except RuntimeError as error:
                    problems.append(str(error))
            os.write(writer, "\n".join(problems).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as said:
            problems = said.read().split("\n")
        assert os.waitpid(child, 0)[1] == 0
    assert all("forked" in problem for problem in problems[:3]), problems
    assert problems[3] == "allowed"
