"""A long draw, and what else happens meanwhile: handlers of signals in its own thread, calls of other threads."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrl

STEPS, N_STEP = 12_000, 10_000


def long_episode(alpha: float | None = None) -> fastrl.Replay:
    """Of which transitions of many steps take long to draw."""
    made = fastrl.Replay(14_000, 1, (1,), "float32", stack=1, alpha=alpha)
    like = np.zeros(1, np.float32)
    with made.writer(0) as writer:
        writer.start(like)
        for step in range(STEPS):
            writer.append(step, 0.0, like, terminated=False, truncated=False)
    made.sample(1, n_step=N_STEP)
    return made


def rows_for(made: fastrl.Replay, seconds: float) -> int:
    """How many take so long to draw."""
    count = 50
    began = time.perf_counter()
    made.sample(count, n_step=N_STEP)
    return max(count, int(count * seconds / (time.perf_counter() - began)))


@contextmanager
def on_alarm(handler: Callable[[], object]) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_a_signals_handler_may_save_in_the_middle_of_a_draw(alpha: float | None, tmp_path: Path) -> None:
    made, same = long_episode(alpha), long_episode(alpha)
    rows = rows_for(same, 1.0)
    made.sample(50, n_step=N_STEP)
    saved: list[Path] = []
    with on_alarm(lambda: saved.append(made.save(tmp_path))):
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        drawn = made.sample(rows, n_step=N_STEP)
    assert len(saved) == 1
    assert np.array_equal(drawn.index, same.sample(rows, n_step=N_STEP).index)  # it was not disturbed

    again = fastrl.Replay(14_000, 1, (1,), "float32", stack=1, alpha=alpha)
    again.load(saved[0])
    # The draw that was under way is the next one of what was saved.
    assert np.array_equal(again.sample(rows, n_step=N_STEP).index, drawn.index)


@pytest.mark.parametrize("what", ["sample", "update_priorities"])
def test_a_handler_that_draws_in_the_middle_of_a_draw_is_refused(what: str) -> None:
    made = long_episode(0.5)
    rows = rows_for(made, 1.0)
    known = made.sample(1, n_step=N_STEP)
    calls: dict[str, Callable[[], Any]] = {
        "sample": lambda: made.sample(1, n_step=N_STEP),
        "update_priorities": lambda: made.update_priorities(known.index, [1.0]),
    }

    def draw_with_a_timer() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        made.sample(rows, n_step=N_STEP)

    with on_alarm(calls[what]), pytest.raises(RuntimeError, match=f"{what}: this thread is inside a draw .* do it aft"):
        draw_with_a_timer()
    calls[what]()


@contextmanager
def drawing_elsewhere(made: fastrl.Replay, rows: int) -> Iterator[threading.Thread]:
    began = threading.Event()

    def draw() -> None:
        began.set()
        made.sample(rows, n_step=N_STEP)

    thread = threading.Thread(target=draw)
    thread.start()
    began.wait()
    time.sleep(0.1)
    try:
        yield thread
    finally:
        thread.join()


@pytest.mark.alone
def test_a_batch_is_waited_for_no_longer_than_was_asked_while_another_thread_draws() -> None:
    made = long_episode()
    rows = rows_for(made, 2.0)
    with made.prefetch(4, n_step=N_STEP) as prefetcher:
        with drawing_elsewhere(made, rows) as thread:
            prefetcher.request()
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                prefetcher.take(timeout_s=0.2)
            assert time.monotonic() - began < 0.8
            assert thread.is_alive()
        assert len(prefetcher.take().reward) == 4  # it was not lost


@pytest.mark.alone
@pytest.mark.parametrize("what", ["sample", "take", "save"])
def test_a_signal_comes_through_while_another_thread_draws(what: str, tmp_path: Path) -> None:
    made = long_episode(0.5)
    rows = rows_for(made, 3.0)

    def interrupt() -> None:
        raise InterruptedError

    with made.prefetch(4, n_step=N_STEP) as prefetcher:
        calls: dict[str, Callable[[], Any]] = {
            "sample": lambda: made.sample(4, n_step=N_STEP),
            "take": lambda: (prefetcher.request(), prefetcher.take()),
            "save": lambda: made.save(tmp_path),
        }
        with on_alarm(interrupt), drawing_elsewhere(made, rows) as thread:
            began = time.monotonic()
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGALRM)).start()
            with pytest.raises(InterruptedError):
                calls[what]()
            assert time.monotonic() - began < 1.2
            assert thread.is_alive()
