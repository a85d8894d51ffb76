"""Whether the learner gets a core when it wants one.

Two runs on one machine, each with as many threads as there are cores, can be eight times as slow as one: the threads of
a matrix product wait for each other, and each of them for a core. The kernel counts those waits.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from fastrl.runs.process_memory import processes

# Alone the learner waits for a core for up to a twentieth of its time, beside one more run for half of it.
_MUCH = 0.3
_BUSY = 0.5  # of the wall time: who sleeps most of it, as where workers do all, is not what is slow
_INTERVALS = 3  # in a row, so that a build or a backup is not told of


def _scheduled_ns() -> tuple[int, int] | None:
    """How long this thread has run, and how long it has waited for a core; None where the kernel does not tell."""
    try:
        ran, waited = Path("/proc/thread-self/schedstat").read_text().split()[:2]
        return int(ran), int(waited)
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class CoreUse:
    """Seconds of cores up to now: of a process and its descendants, and of the cores that it may use."""

    ran_s: float  # that they ran, all their threads added up; of threads that have ended nothing is known
    wanted_s: float  # that they ran or waited for a core
    busy_s: float | None  # that the cores did anything, or were taken by a hypervisor; None: the kernel does not tell

    @classmethod
    def of(cls, pid: int) -> CoreUse | None:
        """None where the kernel does not tell."""
        ran = waited = 0
        told = False
        for each in (pid, *processes(pid)):
            for schedstat in Path(f"/proc/{each}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError, ValueError):  # it has just ended
                    numbers = [int(number) for number in schedstat.read_text().split()[:2]]
                    ran, waited, told = ran + numbers[0], waited + numbers[1], True
        return cls(ran / 1e9, (ran + waited) / 1e9, busy_cores_s()) if told else None


def busy_cores_s(stat: Path = Path("/proc/stat"), cores: Collection[int] | None = None) -> float | None:
    """How long the cores that this process may use (or ``cores``) have done anything, for anybody."""
    mine = {f"cpu{core}" for core in (os.sched_getaffinity(0) if cores is None else cores)}
    try:
        rows = [line.split() for line in stat.read_text().splitlines() if line.split()[0] in mine]
        # user, nice, system, idle, iowait, irq, softirq, steal; what guests took is in the first two
        ticks = sum(int(row[at]) for row in rows for at in (1, 2, 3, 6, 7, 8))
        return ticks / os.sysconf("SC_CLK_TCK") if rows else None
    except (OSError, ValueError, IndexError):
        return None


class CoreWaits:
    """Watches the thread that makes it.

    Args:
        torch_threads: that learn, for the advice.
        note: is told once, when others have taken much of the learner's time.
        read: the thread's running and waiting times so far, in nanoseconds.
        clock_ns: the wall's.
    """

    def __init__(
        self,
        torch_threads: int,
        note: Callable[[str], None],
        read: Callable[[], tuple[int, int] | None] = _scheduled_ns,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._torch_threads, self._note, self._read, self._clock_ns = torch_threads, note, read, clock_ns
        self._before, self._began_ns = read(), clock_ns()
        self._much_in_a_row = 0
        self._told = False

    def take(self, own_process_beside: bool) -> float | None:
        """Of the time since the last call in which the thread wanted a core, the share in which it had none.

        Args:
            own_process_beside: whether the run itself has more beside it now, such as an evaluation: no reason to tell.
        """
        before, self._before = self._before, self._read()
        began_ns, self._began_ns = self._began_ns, self._clock_ns()
        if before is None or self._before is None:
            return None
        ran, waited = (now - then for now, then in zip(self._before, before, strict=True))
        share = waited / max(1, ran + waited)
        busy = ran + waited > _BUSY * (self._began_ns - began_ns)
        much = busy and share > _MUCH and not own_process_beside
        self._much_in_a_row = self._much_in_a_row + 1 if much else 0
        if self._much_in_a_row == _INTERVALS and not self._told:
            self._told = True
            self._note(
                f"other processes want the cores too: the learner waited for one {share:.0%} of its time; "
                f"{self._advice()}"
            )
        return share

    def _advice(self) -> str:
        advice = "let them end first, or give each its share of the cores"
        if self._torch_threads == 1:
            return advice
        return (
            f"{advice}. Threads that wait for each other lose most by it: a new run with --torch-threads 1 (this one "
            f"has {self._torch_threads}), or several seeds by --seeds, which shares the cores out"
        )
