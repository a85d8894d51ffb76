"""How much memory a replay takes, and how large a one fits, without making any."""

from __future__ import annotations

from fastrl.engine import native

DEFAULT_CAPACITY = 1_000_000
# What capacity="auto" leaves to the rest of the machine.
LEFT_FREE_BYTES = 4_000_000_000
MOST_CAPACITY = 2**40


def ring_bytes(shape: dict[str, int], slots: int) -> int:
    """Of a ring with so many slots a lane.

    Args:
        shape: ``lanes``, ``stack``, ``obs_bytes`` and ``action_bytes``.
        slots: of each lane.
    """
    return int(native.core.ring_bytes({**shape, "slots": slots}))


def slots_of(capacity: int, lanes: int) -> int:
    """Of each lane, for so many transitions in all."""
    return -(-capacity // lanes)


def most_slots(shape: dict[str, int], available_bytes: int) -> int:
    """The most slots of a lane with which a ring takes no more bytes."""
    least, most = 0, MOST_CAPACITY // shape["lanes"] + 1
    while most - least > 1:
        middle = (least + most) // 2
        fits = ring_bytes(shape, middle) <= available_bytes
        least, most = (middle, most) if fits else (least, middle)
    return least


def auto_slots(shape: dict[str, int], available_bytes: int) -> int:
    """What "auto" stands for: the default capacity, or what fits if something is left to the rest."""
    return min(slots_of(DEFAULT_CAPACITY, shape["lanes"]), most_slots(shape, available_bytes - LEFT_FREE_BYTES))


def guard_steps() -> int:
    """How many of a full lane's oldest steps are left alone, so that its writer may go on while one samples."""
    return int(native.core.guard_steps)
