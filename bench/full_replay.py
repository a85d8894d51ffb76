"""A replay of frames, full, and a process that writes on: for the benchmarks of the replay."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

import numpy as np
from gymnasium import spaces

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


def sb3_buffer(size: int) -> tuple[Any, tuple[Any, ...]]:
    """Stable-Baselines3's replay of stacks, full, and a step to add."""
    from stable_baselines3.common.buffers import ReplayBuffer

    buffer = ReplayBuffer(
        size,
        spaces.Box(0, 255, (4, 84, 84), np.uint8),
        spaces.Discrete(4),
        device="cpu",
        n_envs=1,
        optimize_memory_usage=True,
        handle_timeout_termination=False,
    )
    stack = frames()[None, :4]
    step = (stack, stack, np.array([0]), np.array([0.0]), np.array([False]), [{}])
    for _ in range(size):
        buffer.add(*step)
    return buffer, step


def write_at_pool_speed(handle: fastrl.ReplayHandle, lane: int, said: Any) -> None:
    """A step every 250 us of computing, about what an emulator takes, and the frame into the ring."""
    shown = frames()
    with fastrl.Replay.attach(handle).writer(lane) as writer:
        writer.start(shown[0])
        said.send(os.getpid())
        for step in itertools.count(1):
            until = time.thread_time() + 250e-6  # of this process's own time on a core
            while time.thread_time() < until:
                pass
            writer.append(step % 4, 0.0, shown[step % FRAMES], False, False)
