"""Checkpoints: saving and loading a replay of frames, beside Stable-Baselines3's pickle of its own.

A save writes what is new since the last one, with checksums, and sees that it is on disk. Stable-Baselines3's writes
all of its buffer again and leaves the rest to the system. The limit is the disk: as many bytes as ours writes, by plain
writes, and on disk as well. Speeds are of the whole replay, however much of it is new: what a user has to wait for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from full_replay import frames, full, sb3_buffer

import fastrl


def play(made: fastrl.Replay, steps: int) -> None:
    """More steps, in the first lane."""
    shown = frames()
    with made.writer(0) as writer:
        writer.start(shown[0])
        for step in range(1, steps):
            writer.append(0, 0.0, shown[step % len(shown)], False, False)


def sb3(capacity: int, folder: Path) -> Callable[[], float]:
    from stable_baselines3.common.save_util import save_to_pkl

    buffer, _ = sb3_buffer(capacity)

    def run() -> float:
        began = time.perf_counter()
        save_to_pkl(folder / "sb3.pkl", buffer)
        return time.perf_counter() - began

    return run


def on_disk(path: Path, content: Any) -> float:
    """Seconds to write and to have it on disk."""
    began = time.perf_counter()
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - began


@pytest.mark.parametrize("new_share", [1.0, 0.1], ids=["all new", "a tenth new"])
def test_save(contest: Any, quick: bool, tmp_path: Path, new_share: float) -> None:
    capacity = 2_000 if quick else 20_000
    new = int(capacity * new_share)
    made = full(capacity)
    slot_bytes = 8 * made._ring.slot_words
    content = np.random.default_rng(0).integers(0, 256, new * slot_bytes, np.uint8).data
    made.save(tmp_path / "ours")
    again = fastrl.Replay(capacity, 1)
    again.load(tmp_path / "ours")
    assert again.digest() == made.digest()

    def ours() -> float:
        play(made, new)
        began = time.perf_counter()
        made.save(tmp_path / "ours", keep=1)
        return time.perf_counter() - began

    match = contest(
        f"save a replay of {capacity:,}, {'all' if new_share == 1 else f'{new_share:.0%} of it'} new",
        "MB/s",
        capacity * slot_bytes / 1e6,
        limit="disk",
    )
    peers = match.peers({"SB3": sb3}, capacity, tmp_path)
    rounds = 1 if quick else 7
    match.run(ours, {**peers, "disk": lambda: on_disk(tmp_path / "plain", content)}, rounds)

    written = sum(path.stat().st_size for path in (tmp_path / "ours").glob("slots-*"))
    assert written <= 2.1 * capacity * slot_bytes


def test_load(contest: Any, quick: bool, tmp_path: Path) -> None:
    capacity = 2_000 if quick else 20_000
    made = full(capacity)
    saved = made.save(tmp_path / "ours")
    paths = sorted((tmp_path / "ours").glob("slots-*"))

    def ours() -> float:
        again = fastrl.Replay(capacity, 1)
        began = time.perf_counter()
        again.load(saved.parent)
        took = time.perf_counter() - began
        assert len(again) == len(made)
        return took

    checked = fastrl.Replay(capacity, 1)
    checked.load(saved.parent)
    assert checked.digest() == made.digest()
    del checked

    def read() -> None:
        for path in paths:
            path.read_bytes()

    size = sum(path.stat().st_size for path in paths)
    match = contest(f"load a replay of {capacity:,}, every byte checked", "MB/s", size / 1e6, limit="read")
    match.run(ours, {"read": read}, 1 if quick else 7)
