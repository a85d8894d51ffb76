"""A piece of memory that processes of one user share. It has no name, so nothing is left when the last one ends."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# linux/fcntl.h; Python 3.11's fcntl names them only where it was compiled with them.
_F_ADD_SEALS = 1033
_SEAL_SHRINK_AND_GROW = 0x0002 | 0x0004


@dataclass(frozen=True)
class SharedMemoryHandle:
    """Where another process of this machine finds it, while its maker lives. Plain numbers."""

    pid: int
    descriptor: int
    inode: int
    size_bytes: int


class SharedMemory:
    """Zeroed memory, private to the user, mapped by its maker and by whoever attaches.

    >>> memory = SharedMemory.create(1024)
    >>> numbers = memory.array(0, (4,), "float32")
    >>> numbers[:] = 7
    >>> float(SharedMemory.attach(memory.handle()).array(0, (4,), "float32")[3])
    7.0
    """

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, size_bytes)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self.size_bytes = size_bytes
        # Who attaches comes by the descriptor; left open it would keep the memory when the last array is gone.
        weakref.finalize(self, os.close, descriptor).atexit = False

    @classmethod
    def create(cls, size_bytes: int) -> SharedMemory:
        """New memory of this size, all of it really there.

        Raises:
            MemoryError: there is not enough.
        """
        descriptor = os.memfd_create("fastrl-shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(descriptor, 0o600)
            os.posix_fallocate(descriptor, 0, size_bytes)
            fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEAL_SHRINK_AND_GROW)
            return cls(descriptor, size_bytes)
        except OSError as error:
            os.close(descriptor)
            raise MemoryError(f"shared memory: {size_bytes:,} bytes cannot be had ({error.strerror})") from None

    @classmethod
    def attach(cls, handle: SharedMemoryHandle) -> SharedMemory:
        """The memory of another process.

        Raises:
            ConnectionError: it is gone, or not what the handle says.
        """
        path = f"/proc/{handle.pid}/fd/{handle.descriptor}"
        try:
            # Not blocking: the number may mean something else by now, which could wait for somebody.
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ConnectionError(f"shared memory: process {handle.pid} is gone or not ours ({error})") from None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or (found.st_ino, found.st_size) != (handle.inode, handle.size_bytes):
            os.close(descriptor)
            raise ConnectionError(f"shared memory: {path} is not what the handle says; process {handle.pid} has ended")
        return cls(descriptor, handle.size_bytes)

    def handle(self) -> SharedMemoryHandle:
        """For :meth:`attach` in another process."""
        return SharedMemoryHandle(os.getpid(), self._descriptor, os.fstat(self._descriptor).st_ino, self.size_bytes)

    def array(self, offset_bytes: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A part of it as an array that all processes see alike. Lives as long as the mapping."""
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        end = offset_bytes + count * kind.itemsize
        if offset_bytes % kind.itemsize or end > self.size_bytes:
            raise ValueError(f"shared memory: bytes {offset_bytes}..{end} are not within {self.size_bytes}, aligned")
        return self._bytes[offset_bytes:end].view(kind).reshape(shape)
