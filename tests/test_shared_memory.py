"""Memory that processes share: found by its handle, and gone with whoever holds it last."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from fastrl.engine.shared_memory import SharedMemory, SharedMemoryHandle


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_it_is_gone_with_its_last_array() -> None:
    gc.collect()  # what other tests left
    before = descriptors()
    for _ in range(5):
        made = SharedMemory.create(1_000_000)
        seen = SharedMemory.attach(made.handle()).array(0, (4,), "float32")
        made.array(0, (4,), "float32")[:] = 7
        assert seen.tolist() == [7] * 4
    del made, seen
    gc.collect()
    assert descriptors() == before


def test_a_handle_that_means_something_else_is_refused(tmp_path: Path) -> None:
    read, write = os.pipe()
    try:
        pipe = SharedMemoryHandle(os.getpid(), read, os.fstat(read).st_ino, 0)
        with pytest.raises(ConnectionError, match="not what the handle says"):
            SharedMemory.attach(pipe)
    finally:
        os.close(read)
        os.close(write)
    with pytest.raises(ConnectionError, match="gone or not ours"):
        SharedMemory.attach(SharedMemoryHandle(2**30, 3, 1, 8))
