"""How much memory a replay takes, and how large a one fits, without making any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastrl.engine import native
from fastrl.engine.rules import whole_number

DEFAULT_CAPACITY = 1_000_000
# What capacity="auto" leaves to the rest of the machine.
LEFT_FREE_BYTES = 4_000_000_000
# What a capacity that is given leaves, so that whoever makes a ring is not ended by the kernel at its next allocation:
# page tables (8 bytes for each 4,096, of every mapping of every process), and what Python and batches take.
LEFT_TO_ITS_USERS_BYTES, LEFT_TO_ITS_USERS_SHARE = 64_000_000, 1 / 128
MOST_CAPACITY = 2**40
# Steps that a lane must hold besides a stack and the steps of a return: below, its writer would come round too soon.
LEAST_SPARE_STEPS = 64


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


def sum_tree_bytes(places: int) -> int:
    """Of priorities: a tree over a power of two of places, 8 bytes each node. Made at the first draw."""
    return 16 * (1 << max(0, places - 1).bit_length())


def priorities_bytes(shape: dict[str, int], slots: int, prioritised: bool) -> int:
    """What a ring with so many slots a lane has beside it, if draws go by priority."""
    return sum_tree_bytes(slots * shape["lanes"]) if prioritised else 0


def most_slots(
    shape: dict[str, int], available_bytes: int, beside_bytes: Callable[[int], int] = lambda slots: 0
) -> int:
    """The most slots of a lane with which a ring takes no more bytes, what is needed beside it included."""
    least, most = 0, MOST_CAPACITY // shape["lanes"] + 1
    while most - least > 1:
        middle = (least + most) // 2
        fits = ring_bytes(shape, middle) + beside_bytes(middle) <= available_bytes
        least, most = (middle, most) if fits else (least, middle)
    return least


def room_bytes(available_bytes: int) -> int:
    """Of what is available, how much a ring may take."""
    return max(0, available_bytes - LEFT_TO_ITS_USERS_BYTES - int(available_bytes * LEFT_TO_ITS_USERS_SHARE))


def what_fits(shape: dict[str, int], least: int, available_bytes: int, prioritised: bool = False) -> str:
    """What to do where something does not: a capacity to give, or why there is none.

    A little less than would fit now, so that it also fits when it is tried.
    """
    room = room_bytes(available_bytes) - available_bytes // 200
    slots = most_slots(shape, room, lambda slots: priorities_bytes(shape, slots, prioritised))
    lanes = shape["lanes"]
    left = f"{(available_bytes - room_bytes(available_bytes)) / 1e9:.2g} GB are left to Python and page tables"
    if slots >= least:
        return f"at most {slots * lanes:,} fit, where {left}"
    needed = needed_bytes(shape, least, prioritised)
    return (
        f"not even the least, {least * lanes:,}, fit: they need {needed / 1e9:.3g} GB, and {left}; use fewer lanes, or "
        f"free memory"
    )


def needed_bytes(shape: dict[str, int], slots: int, prioritised: bool = False) -> int:
    """Of a ring with so many slots a lane, and of its priorities."""
    return ring_bytes(shape, slots) + priorities_bytes(shape, slots, prioritised)


def auto_slots(shape: dict[str, int], available_bytes: int, prioritised: bool = False) -> int:
    """What "auto" stands for: the default capacity, or what fits if something is left to the rest."""
    room = available_bytes - LEFT_FREE_BYTES
    most = most_slots(shape, room, lambda slots: priorities_bytes(shape, slots, prioritised))
    return min(slots_of(DEFAULT_CAPACITY, shape["lanes"]), most)


def guard_steps() -> int:
    """How many of a full lane's oldest steps are left alone, so that its writer may go on while one samples."""
    return int(native.core.guard_steps)


def least_slots(stack: int, spare_steps: int = LEAST_SPARE_STEPS) -> int:
    """Of a lane: what its writer may be ahead, a stack and a step."""
    return max(spare_steps, guard_steps()) + stack + 1


def slots_asked_for(
    capacity: Any, shape: dict[str, int], least: int, available_bytes: int, prioritised: bool = False
) -> int:
    """Slots of a lane for ``capacity`` transitions in all, or for "auto"; whether a number fits is not looked at.

    Raises:
        ValueError: so few, or so many, make no replay.
        MemoryError: "auto" would leave too little to the rest.
    """
    lanes = shape["lanes"]
    if isinstance(capacity, str):
        if capacity != "auto":
            raise ValueError(f"capacity: {capacity!r} is neither a number of transitions nor 'auto'")
        slots = auto_slots(shape, available_bytes, prioritised)
        if slots < least:
            raise MemoryError(
                f"capacity: 'auto' leaves {LEFT_FREE_BYTES / 1e9:.0f} GB to the rest, but only "
                f"{available_bytes / 1e9:.1f} GB are available; {what_fits(shape, least, available_bytes, prioritised)}"
            )
        return slots
    slots = slots_of(whole_number("capacity", capacity, 1, MOST_CAPACITY), lanes)
    if slots < least:
        raise ValueError(
            f"capacity: {capacity} is {slots} for each of {lanes} lanes; each needs at least {least} "
            f"({least - shape['stack'] - 1}, a stack of {shape['stack']} and a step), so give at least {least * lanes}"
        )
    return slots
