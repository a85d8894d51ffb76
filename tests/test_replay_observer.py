"""Looking at a replay from another process: everything is seen, nothing can be changed, nobody notices."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from replay_processes import observation, observe, own_and_wait
from written_replay import GAMMA, Written

import fastrl

CONTEXT = multiprocessing.get_context("spawn")


class Asked:
    """An observer in another process."""

    def __init__(self, handle: fastrl.ReplayHandle) -> None:
        self.said, there = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=observe, args=(handle, there), daemon=True)
        self.process.start()
        there.close()

    def __call__(self, name: str, *arguments: Any) -> Any:
        self.said.send((name, arguments))
        assert self.said.poll(30), "no answer"
        return self.said.recv()

    def end(self) -> None:
        self.said.send(None)
        self.process.join(20)
        assert self.process.exitcode == 0


@pytest.fixture
def written() -> Written:
    made = Written()
    made.play(0, 30, seed=1)
    made.play(1, 7, seed=2)
    return made


@pytest.fixture
def asked(written: Written) -> Iterator[Asked]:
    made = Asked(written.replay.handle())
    yield made
    made.end()


def test_another_process_sees_what_is_there(written: Written, asked: Asked) -> None:
    for more in (0, 5):
        written.play(0, more, seed=3)
        what, boundary = asked("boundary")
        assert (what, boundary) == ("result", written.replay.boundary())
        what, stacks = asked("stacks")
        np.testing.assert_array_equal(stacks, written.replay.stacks())
    what, stats = asked("stats")
    assert stats["steps_published"] == [35, 7]
    assert stats["lanes_written"] == [True, True]
    written.writers[1].close()
    assert asked("stats")[1]["lanes_written"] == [True, False]


def test_the_newest_steps_are_those_that_were_written(written: Written, asked: Asked) -> None:
    _, steps = asked("newest", 0, 12)
    expected = written.lanes[0].slots[-12:]
    np.testing.assert_array_equal(steps.obs, [slot.obs for slot in expected])
    assert steps.step.tolist() == list(range(18, 30))
    assert steps.first.tolist() == [slot.first for slot in expected]
    assert steps.terminated.tolist() == [slot.terminated for slot in expected]
    assert steps.truncated.tolist() == [slot.truncated for slot in expected]
    after_first = [i for i, slot in enumerate(expected) if not slot.first]
    assert steps.action[after_first].tolist() == [expected[i].action for i in after_first]
    np.testing.assert_array_equal(steps.reward[after_first], np.float32([expected[i].reward for i in after_first]))
    assert np.diff(steps.episode).tolist() == [int(slot.first) for slot in expected[1:]]
    assert len(asked("newest", 1, 12)[1].step) == 7


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (("writer", 0), "PermissionError", "writer: an observer only looks; use Replay.attach(handle) to write"),
        (("sink",), "PermissionError", "sink: an observer only looks"),
        (("load", "somewhere"), "PermissionError", "load: an observer only looks"),
        (("newest", 2), "ValueError", "newest: lane: 2 is outside [0, 1]"),
        (("newest", 0, 99), "ValueError", "newest: count: 99 is outside [1, 16]"),
        (("sample", 4), "PermissionError", "sample: an observer only looks"),
        (("save", "somewhere"), "PermissionError", "save: an observer only looks"),
    ],
)
def test_an_observer_changes_nothing(asked: Asked, call: tuple[Any, ...], error: str, message: str) -> None:
    what, said = asked(*call)
    assert what == error
    assert message in said


def test_the_native_part_refuses_it_too(written: Written) -> None:
    observer = fastrl.Replay.observe(written.replay.handle())
    inner = observer._replay("test")
    written.writers[0].close()
    with pytest.raises(RuntimeError, match="this process only observes the replay; attach to it in order to write"):
        inner.writer(0)
    written.replay.writer(0).close()  # the lane was not touched


def test_its_pages_cannot_be_written(written: Written) -> None:
    def mapped() -> list[str]:
        with open("/proc/self/maps") as maps:
            return sorted(line.split()[1] for line in maps if "fastrl-ring" in line)

    before = mapped()
    observer = fastrl.Replay.observe(written.replay.handle())
    assert sorted([*before, "r--s"]) == mapped()
    descriptor = observer._replay("test").handle().descriptor
    with open(f"/proc/self/fdinfo/{descriptor}") as info:
        flags = int(next(line for line in info if line.startswith("flags:")).split()[1], 8)
    assert flags & os.O_ACCMODE == os.O_RDONLY


def test_writers_do_not_notice(written: Written) -> None:
    """Many observers looking all the time, and what is written and drawn is the same."""
    alone = Written()
    alone.play(0, 30, seed=1)
    alone.play(1, 7, seed=2)
    observers = [fastrl.Replay.observe(written.replay.handle()) for _ in range(4)]
    stop = threading.Event()

    def look(observer: fastrl.Observer) -> None:
        while not stop.is_set():
            observer.stacks()
            observer.newest(0, 4)

    threads = [threading.Thread(target=look, args=(observer,)) for observer in observers]
    for thread in threads:
        thread.start()
    for turn in range(20):
        for made in (written, alone):
            made.play(0, 15, seed=turn)
            made.play(1, 15, seed=turn)
        ours, theirs = written.replay.sample(32, 1, GAMMA), alone.replay.sample(32, 1, GAMMA)
        assert [array.tolist() for array in ours] == [array.tolist() for array in theirs]
    stop.set()
    for thread in threads:
        thread.join()


def test_it_goes_on_showing_what_was_written_when_the_owner_has_died() -> None:
    here, there = CONTEXT.Pipe()
    owner = CONTEXT.Process(target=own_and_wait, args=(there,), daemon=True)
    owner.start()
    there.close()
    handle = here.recv()
    asked = Asked(handle)
    assert asked("boundary") == ("result", [40, 0])
    os.kill(owner.pid or 0, signal.SIGKILL)
    owner.join(10)

    assert asked("boundary") == ("result", [40, 0])
    np.testing.assert_array_equal(asked("newest", 0, 3)[1].obs, [observation(0, step) for step in (37, 38, 39)])
    assert asked("stats")[1]["lanes_written"] == [False, False]
    with pytest.raises(ConnectionError, match=f"the replay of process {owner.pid} cannot be opened"):
        fastrl.Replay.observe(handle)
    asked.end()


def test_a_closed_observer_says_so(written: Written) -> None:
    with fastrl.Replay.observe(written.replay.handle()) as observer:
        observer.boundary()
    with pytest.raises(RuntimeError, match="boundary: this observer is closed"):
        observer.boundary()
