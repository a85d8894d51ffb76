"""Seeds as gymnasium's Atari env derives them, so that env i of a pool plays what that env plays with the same seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# The emulator's seed and the PCG64 state behind no-op counts: state and increment, high and low words.
EnvSeed = tuple[int, int, int, int, int]
_LOW = (1 << 64) - 1


def pcg64_words(seed: int) -> tuple[int, int, int, int]:
    """State and increment of numpy's PCG64 seeded with ``seed``, as 64-bit words."""
    state = np.random.PCG64(np.random.SeedSequence(seed)).state["state"]
    return state["state"] >> 64, state["state"] & _LOW, state["inc"] >> 64, state["inc"] & _LOW


def env_seed(seed: int) -> EnvSeed:
    """What ``AtariEnv.seed_game(seed)`` sets: one word for numpy, one for the emulator."""
    numpy_seed, emulator_seed = np.random.SeedSequence(seed).generate_state(2)
    return (int(emulator_seed), *pcg64_words(int(numpy_seed)))


def fresh_seed() -> int:
    """A seed from the system's entropy, for envs that nobody seeded."""
    return int(np.random.SeedSequence().generate_state(1)[0])


def spread_seed(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """One seed an env: ``seed + i`` for a number (gymnasium's rule), or the given list.

    >>> spread_seed(5, 3)
    [5, 6, 7]
    """
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        seeds: list[int | None] = [int(seed) + i for i in range(num_envs)]
    elif isinstance(seed, (Sequence, np.ndarray)) and not isinstance(seed, (str, bytes)):
        if isinstance(seed, np.ndarray) and seed.ndim != 1:
            raise TypeError(f"seed: an array of shape {seed.shape} is neither a whole number nor one an env")
        seeds = [None if s is None else _whole(s) for s in seed]
    else:
        raise TypeError(f"seed: {seed!r} is neither a whole number nor one an env")
    if len(seeds) != num_envs:
        raise ValueError(f"seed: got {len(seeds)} seeds for {num_envs} envs; give one number, or one seed an env")
    for s in seeds:
        if s is not None and s < 0:
            raise ValueError(f"seed: {s} is negative; seeds are whole numbers from 0 on")
    return seeds


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"seed: {value!r} is not a whole number")
    return int(value)
