"""A replay of frames in which every slot was written, for the benchmarks of sampling and of saving."""

from __future__ import annotations

import numpy as np

import fastrl

FRAMES = 4096  # different ones, used again and again


def frames() -> np.ndarray:
    found = np.random.default_rng(0).integers(1, 256, (FRAMES, 84, 84), np.uint8)
    found[:, 0, :4] = np.arange(FRAMES, dtype=np.uint32).view(np.uint8).reshape(FRAMES, 4)  # says which it is
    return found


def full(capacity: int, lanes: int = 1) -> fastrl.Replay:
    """A replay in which every slot was written; a frame says which step it is."""
    made = fastrl.Replay(capacity, lanes)
    shown = frames()
    for lane in range(lanes):
        with made.writer(lane) as writer:
            writer.start(shown[0])
            for step in range(1, capacity // lanes + 100):
                frame = shown[step % FRAMES]
                writer.append(step % 4, float(step % 7), frame, False, False)
    return made
