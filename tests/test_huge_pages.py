"""A replay's memory lies on huge pages where the kernel can gather them, and takes no more for it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import numpy as np
import pytest

import fastrl

_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")


def can_gather() -> bool:
    """Whether this kernel should: Linux 6.1 and later, unless they are denied."""
    release = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
    settings = _SETTINGS / "shmem_enabled"
    return release >= (6, 1) and settings.exists() and "[deny]" not in settings.read_text()


def replay() -> fastrl.Replay:
    return fastrl.Replay(9_000, lanes=3, stack=4)


def mapped_by_huge_pages() -> list[int]:
    """Bytes of each of this process's views of replays."""
    found, mine = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            mine = "fastrl-ring" in line
        elif mine and first == "ShmemPmdMapped:":
            found.append(int(rest[0]) << 10)
    return found


@pytest.mark.skipif(not can_gather(), reason="needs Linux 6.1, and huge pages of shared memory that are not denied")
def test_reader_and_writers_see_huge_pages() -> None:
    made = replay()
    whole = made.handle().region_bytes
    assert max(mapped_by_huge_pages()) > 0.9 * whole - (2 << 20)  # the last part is small ones
    writers = [made.writer(lane) for lane in range(3)]
    views = sorted(mapped_by_huge_pages())
    assert len(views) >= 4
    assert all(view > 0.8 * whole / 3 for view in views[-4:])
    del writers


def test_a_replay_takes_its_bytes_and_no_more() -> None:
    made = replay()
    handle = made.handle()
    taken = os.stat(f"/proc/self/fd/{handle.descriptor}").st_blocks * 512
    assert handle.region_bytes <= taken < handle.region_bytes + 4096


def test_what_is_written_is_what_is_read_on_the_border_of_huge_pages() -> None:
    made = replay()
    frames = np.random.default_rng(0).integers(0, 256, (50, 84, 84), dtype=np.uint8)
    with made.writer(1) as writer:
        writer.start(frames[0])
        for step in range(1, 2_900):  # some ten huge pages
            writer.append(step % 4, 0.0, frames[step % 50], False, False)
    batch = made.sample(256)
    for row, (_, step) in enumerate(batch.index.tolist()):
        assert np.array_equal(batch.next_obs[row, -1], frames[(step + 1) % 50])
