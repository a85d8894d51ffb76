"""A run that has to share its cores says so once; one that has them does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastrl.runs.core_waits import CoreUse, CoreWaits, busy_cores_s


class Clock:
    """A thread's times, as the kernel would give them."""

    def __init__(self) -> None:
        self.ran = self.waited = self.wall = 0

    def interval(self, share: float, busy: float) -> None:
        self.wall += round(1e9)
        self.ran += round(1e9 * busy * (1 - share))
        self.waited += round(1e9 * busy * share)

    def read(self) -> tuple[int, int]:
        return self.ran, self.waited


def watched(
    shares: list[float], torch_threads: int = 2, beside: bool = False, busy: float = 1.0
) -> tuple[list[str], list[float | None]]:
    clock, notes = Clock(), list[str]()
    waits = CoreWaits(torch_threads, notes.append, clock.read, lambda: clock.wall)
    found = []
    for share in shares:
        clock.interval(share, busy)
        found.append(waits.take(beside))
    return notes, found


def test_the_share_is_of_the_interval() -> None:
    assert watched([0.5, 0.1, 0.0])[1] == pytest.approx([0.5, 0.1, 0.0])


def test_much_waiting_for_long_is_told_once_with_what_to_do() -> None:
    notes, _ = watched([0.48] * 9)
    assert len(notes) == 1
    assert "waited for one 48% of its time" in notes[0]
    assert "--torch-threads 1 (this one has 2)" in notes[0]


def test_who_has_one_thread_is_not_told_to_have_one() -> None:
    notes, _ = watched([0.6] * 3, torch_threads=1)
    assert len(notes) == 1
    assert "torch-threads" not in notes[0]


@pytest.mark.parametrize("shares", [[0.05] * 9, [0.48, 0.48, 0.1, 0.48, 0.48]])
def test_little_waiting_and_short_waiting_are_not_told(shares: list[float]) -> None:
    assert watched(shares)[0] == []


def test_the_runs_own_evaluation_is_no_reason() -> None:
    assert watched([0.48] * 9, beside=True)[0] == []


def test_a_learner_that_sleeps_most_of_the_time_is_not_what_is_slow() -> None:
    assert watched([0.9] * 9, busy=0.1)[0] == []


def test_a_kernel_that_does_not_tell_is_no_error() -> None:
    waits = CoreWaits(1, pytest.fail, lambda: None)
    assert waits.take(False) is None


@pytest.mark.alone
def test_a_thread_that_shares_its_core_is_found_waiting() -> None:
    """By the kernel's own figures: this thread and a busy process on one core."""
    cores = os.sched_getaffinity(0)
    here = {min(cores)}
    os.sched_setaffinity(0, here)
    busy = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    try:
        assert busy.stdout is not None
        busy.stdout.readline()
        waits = CoreWaits(1, pytest.fail)
        until = time.perf_counter() + 0.5
        while time.perf_counter() < until:
            pass
        share = waits.take(False)
    finally:
        busy.kill()
        busy.communicate()
        os.sched_setaffinity(0, cores)
    if share is None:
        pytest.skip("this kernel keeps no /proc/thread-self/schedstat")
    assert 0.2 < share < 0.9


def test_cores_are_busy_with_anything_but_idling(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    numbers = "100 20 30 5000 600 1 2 47 10 5"  # user nice system idle iowait irq softirq steal guest guest_nice
    stat.write_text(f"cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 {numbers}\ncpu1 {numbers}\ncpu10 {numbers}\nintr 1 2\n")
    second = os.sysconf("SC_CLK_TCK")
    assert busy_cores_s(stat, [1]) == 200 / second
    assert busy_cores_s(stat, [0, 10]) == 400 / second
    assert busy_cores_s(stat, [7]) is None
    assert busy_cores_s(tmp_path / "none") is None


@pytest.mark.alone
def test_cores_were_as_busy_as_who_ran_on_them() -> None:
    here = CoreUse.of(os.getpid())
    if here is None or here.busy_s is None:
        pytest.skip("this kernel keeps no /proc/PID/schedstat, or hides /proc/stat")
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        own, its = CoreUse.of(os.getpid()), CoreUse.of(busy.pid)
        time.sleep(1.0)
        own_later, its_later = CoreUse.of(os.getpid()), CoreUse.of(busy.pid)
    finally:
        busy.kill()
        busy.wait()
    assert own is not None
    assert own_later is not None
    assert its is not None
    assert its_later is not None
    assert own.busy_s is not None
    assert own_later.busy_s is not None
    assert its_later.ran_s > its.ran_s
    # It is a child of this process, so its time is in both.
    assert own_later.ran_s - own.ran_s > 0.9 * (its_later.ran_s - its.ran_s)
    assert own_later.busy_s - own.busy_s > 0.9 * (its_later.ran_s - its.ran_s) - 0.05
