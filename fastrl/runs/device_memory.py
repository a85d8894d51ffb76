"""What a training takes of a GPU's memory, counted in its own process, where alone torch can tell."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastrl.runs.process_memory import memory_bytes

# Page-locked for a moment, to see whether the kernel counts such memory as the process's own.
_PROBE_BYTES = 8 << 20


@dataclass(frozen=True)
class DeviceUse:
    """Of one process."""

    name: str
    free_bytes: int  # when the driver had its part for this process, and before anything else was there
    allocated_bytes: int  # the most that tensors took
    reserved_bytes: int  # the most that torch held for them, with what it keeps for the next ones
    driver_bytes: int  # that went beside, until the end: kernels that were loaded, graphs; or to other processes
    locked_bytes: int  # page-locked memory of the host, in powers of two as torch takes it
    locked_is_counted: bool  # among the process's memory, by the kernel


def _page_locked(size: int) -> Any:
    import torch

    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


class DeviceWatch:
    """Begin before anything lies on the device, and look while all of it does.

    Args:
        cuda: tests give another one,
        lock: and another way to page-locked memory.
    """

    def __init__(self, cuda: Any = None, lock: Callable[[int], Any] = _page_locked) -> None:
        import torch

        self._cuda, self._lock = torch.cuda if cuda is None else cuda, lock
        self._free_bytes = int(self._cuda.mem_get_info()[0])  # which has the driver take its part

    def look(self) -> DeviceUse:
        """Now."""
        cuda = self._cuda
        cuda.synchronize()
        free, reserved = int(cuda.mem_get_info()[0]), int(cuda.memory_reserved())
        locked = int(cuda.host_memory_stats().get("allocated_bytes.peak", 0))
        return DeviceUse(
            name=str(cuda.get_device_name()),
            free_bytes=self._free_bytes,
            allocated_bytes=int(cuda.max_memory_allocated()),
            reserved_bytes=int(cuda.max_memory_reserved()),
            driver_bytes=max(0, self._free_bytes - free - reserved),
            locked_bytes=locked,
            locked_is_counted=self._is_counted(),
        )

    def _is_counted(self) -> bool:
        before = memory_bytes(os.getpid())
        probe = self._lock(_PROBE_BYTES)
        probe.fill_(1)
        return memory_bytes(os.getpid()) - before > _PROBE_BYTES // 2
