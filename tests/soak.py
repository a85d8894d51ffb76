"""Memory does not grow: `python tests/soak.py --steps 1000000` steps pools and watches the resident memory.

Games with cached and with emulated resets, sticky actions, sub-batches, kept and dropped observations, saved states.
After a warm-up the resident memory must stay within a few pages of what it was. pytest runs a sample.
"""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import fastrl

PAGE_BYTES = resource.getpagesize()


def resident_bytes() -> int:
    """Memory of this process that is really in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def pools() -> list[fastrl.AtariPool]:
    return [
        fastrl.AtariPool("pong", num_envs=8, protocol="nature", max_frames=2000),
        fastrl.AtariPool("breakout", num_envs=8, protocol="sb3"),
        fastrl.AtariPool("seaquest", num_envs=4, protocol="dopamine"),
        fastrl.AtariPool("ms_pacman", num_envs=4, protocol="cleanrl", autoreset="same_step"),
        fastrl.AtariPool("qbert", num_envs=4, batch_size=2, protocol="gymnasium"),
    ]


def play(pool: fastrl.AtariPool, rounds: int, rng: np.random.Generator) -> int:
    """Step a pool for some rounds; the steps taken."""
    if pool.batch_size < pool.num_envs:
        pool.send(rng.integers(pool.num_actions, size=pool.num_envs))
        for _ in range(rounds):
            info = pool.recv()[4]
            pool.send(rng.integers(pool.num_actions, size=pool.batch_size), info["env_id"])
        pool.reset()  # what is under way is dropped
        return rounds * pool.batch_size
    kept = []
    for number in range(rounds):
        obs, *_ = pool.step(rng.integers(pool.num_actions, size=pool.num_envs))
        if number % 16 == 0:
            kept = [*kept[-3:], obs]  # some observations are held for a while
    return rounds * pool.num_envs


def soak(steps: int, save_every_steps: int = 50_000) -> Iterator[tuple[int, int]]:
    """Yields steps taken and resident bytes now and then, the first time after a warm-up of a tenth."""
    rng = np.random.default_rng(0)
    playing = pools()
    for pool in playing:
        pool.reset(seed=1)
    taken, saved_at, reported_at = 0, 0, steps // 10
    while taken < steps:
        for pool in playing:
            taken += play(pool, 100, rng)
        if taken - saved_at >= save_every_steps:
            saved_at = taken
            for pool in playing:
                pool.load_state(pool.save_state())
        if taken >= reported_at:
            reported_at += max(1, steps // 10)
            gc.collect()
            yield taken, resident_bytes()
    for pool in playing:
        pool.close()


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--allowed-mb", type=float, default=4.0, help="growth from the warm-up to the end")
    arguments = parser.parse_args()
    began = time.monotonic()
    readings = []
    for taken, resident in soak(arguments.steps):
        readings.append(resident)
        print(f"{taken:>10,} steps  {resident / 1e6:8.1f} MB  {time.monotonic() - began:6.0f} s", flush=True)
    growth = (readings[-1] - readings[0]) / 1e6
    print(f"growth after the warm-up: {growth:.1f} MB (allowed {arguments.allowed_mb})")
    sys.exit(0 if growth <= arguments.allowed_mb else 1)


if __name__ == "__main__":
    main()
