"""What processes take of memory, counted so that it does not depend on who else shares it."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path


def processes(pid: int) -> list[int]:
    """The living descendants of a process, without itself."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        children = [child for child, of in parents.items() if of == parent]
        found += children
        waiting += children
    return found


def memory_bytes(pid: int, *, files: bool = True) -> int:
    """What a process takes now; 0: there is none.

    Args:
        pid: the process.
        files: count the files that it has mapped, such as libraries. Processes that have the same ones share them.
    """
    found = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        # Shared memory in parts, as many as share it: a ring is mapped twice by its writer.
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                found += 1024 * int(line.split()[1])
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssFile:") and files:
                found += 1024 * int(line.split()[1])
    return found


def give_back_memory() -> None:
    """Hand to the system what was freed, but is kept for later by the C library (glibc; others do by themselves).

    After something large and rare, such as a checkpoint: else its memory stays with the process for hours.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class PeakMemory:
    """The most that a process, and its descendants beside it, were seen to take.

    Args:
        pid: the process.
        files: count the files that it has mapped, see :func:`memory_bytes`. Those of its descendants are not counted.
    """

    def __init__(self, pid: int, *, files: bool = True) -> None:
        self._pid, self._files = pid, files
        self.own_bytes = self.descendants_bytes = 0
        self._known: set[int] = set()

    def look(self) -> None:
        """Now."""
        self.own_bytes = max(self.own_bytes, memory_bytes(self._pid, files=self._files))
        found = processes(self._pid)
        # One that is just being started has its parent's memory until it is the program that it is to be.
        beside = sum(memory_bytes(pid, files=False) for pid in found if pid in self._known)
        self._known = set(found)
        self.descendants_bytes = max(self.descendants_bytes, beside)
