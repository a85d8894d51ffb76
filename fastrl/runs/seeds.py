"""Random streams of a run, each a child of the run's one seed, found by its name. There is no global generator."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np


def child_seed(seed: int, name: str) -> np.random.SeedSequence:
    """The seed sequence called ``name`` under ``seed``. Streams of other names or seeds are independent of it."""
    return np.random.SeedSequence(seed, spawn_key=(zlib.crc32(name.encode()),))


def generator(seed: int, name: str) -> np.random.Generator:
    """A generator of its own.

    >>> a, b = generator(0, "exploration"), generator(0, "exploration")
    >>> bool(a.random() == b.random())
    True
    """
    return np.random.Generator(np.random.PCG64(child_seed(seed, name)))


def whole(seed: int, name: str) -> int:
    """A seed for whoever takes one number, small enough that ``+ i`` for each env stays within 32 bits."""
    return int(child_seed(seed, name).generate_state(1)[0]) >> 1


def generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """What :func:`restore_generator` needs, fit for JSON."""
    return dict(generator.bit_generator.state)


def restore_generator(generator: np.random.Generator, state: dict[str, Any]) -> None:
    """Let ``generator`` go on where another one was."""
    generator.bit_generator.state = state
