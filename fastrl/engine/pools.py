"""What the Atari and the MuJoCo pool share: arguments that both check, and their end before Python's."""

from __future__ import annotations

import atexit
import os
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from fastrl.engine import native
from fastrl.engine.budget import available_memory_bytes, usable_cores
from fastrl.engine.games import nearest
from fastrl.engine.rules import whole_number

# How long a thread of a pool that has nothing to do watches for work before it sleeps. On virtual machines waking a
# sleeper takes 50 to 100 us, twice in a batch. Longer than what Python needs between two steps, and no longer.
_SPIN_US = 200

# The native enums (csrc/pool/env_pool.hpp, csrc/mujoco/mujoco_pool.hpp).
NATIVE_AUTORESET = {AutoresetMode.NEXT_STEP: 0, AutoresetMode.SAME_STEP: 1, AutoresetMode.DISABLED: 2}
_AUTORESET_NAMES = {
    "next_step": AutoresetMode.NEXT_STEP,
    "same_step": AutoresetMode.SAME_STEP,
    "disabled": AutoresetMode.DISABLED,
}

# Pools whose threads must end before the interpreter does.
_open_pools: weakref.WeakSet[VectorEnv[Any, Any, Any]] = weakref.WeakSet()
_warned_about_threads: set[str] = set()  # kinds of pools


def close_at_exit(pool: VectorEnv[Any, Any, Any]) -> None:
    """Close ``pool`` when Python ends, if it is still there."""
    _open_pools.add(pool)


_foreign_calls: set[object] = set()  # under way
os.register_at_fork(after_in_child=_foreign_calls.clear)  # their threads are not there
_MOST_WAITED_S = 30.0
_python_ends = False


@contextmanager
def foreign_calls() -> Iterator[None]:
    """Around what calls other libraries' native parts: Python does not end meanwhile. Also a decorator.

    Python ends a daemon thread by unwinding its stack when that asks for the interpreter too late, and C++ that does
    not expect this ends the whole process by a signal. fastrl's own does (csrc/bindings/common.hpp); mujoco's does not,
    and ale-py's complains of what was left behind. So what has begun is waited for, and a daemon thread that begins
    while Python ends rests instead.
    """
    call = object()
    try:
        _foreign_calls.add(call)  # before the look: either this sees the end, or the end sees this
        if _python_ends:
            _foreign_calls.discard(call)
            native.core.rest_if_python_ends()
        yield
    finally:
        _foreign_calls.discard(call)


@atexit.register
def _close_open_pools() -> None:
    global _python_ends
    _python_ends = True
    native.core.python_ends()
    deadline = time.monotonic() + _MOST_WAITED_S
    try:
        while _foreign_calls and time.monotonic() < deadline:
            time.sleep(0.001)
    finally:  # also where somebody does not want to wait
        for pool in list(_open_pools):
            pool.close()


def resolved_autoreset(mode: str | AutoresetMode) -> AutoresetMode:
    """The mode that is meant, by its own name or gymnasium's."""
    if isinstance(mode, AutoresetMode):
        return mode
    for name, value in _AUTORESET_NAMES.items():
        if mode in (name, value.value):
            return value
    raise ValueError(
        f"autoreset: '{mode}' is unknown{nearest(str(mode), list(_AUTORESET_NAMES))}; known: "
        f"{', '.join(_AUTORESET_NAMES)}"
    )


def resolved_threads(pool: str, threads: int | None, num_envs: int) -> int:
    """How many threads a pool of this kind gets. More than there are cores are warned of once."""
    cores = usable_cores()
    if threads is None:
        return min(cores, num_envs)
    threads = whole_number("threads", threads, 1)
    if threads > cores and pool not in _warned_about_threads:
        _warned_about_threads.add(pool)
        warnings.warn(
            f"{pool}: {threads} threads on {cores} usable cores (affinity and control-group quota counted) take "
            f"turns and gain nothing; threads=None takes {min(cores, num_envs)}",
            RuntimeWarning,
            stacklevel=3,
        )
    return min(threads, num_envs)


def spin_us(threads: int) -> int:
    """How long these threads watch for work before they sleep: not at all where others wait for their cores."""
    return _SPIN_US if threads <= usable_cores() else 0


def require_memory(num_envs: int, env_bytes: int) -> None:
    """Refuse a pool that would end in the kernel's out-of-memory killer."""
    available = available_memory_bytes()
    if num_envs * env_bytes > available:
        raise MemoryError(
            f"num_envs: {num_envs} envs need about {num_envs * env_bytes / 1e9:.1f} GB, {available / 1e9:.1f} GB are "
            f"available; at most {available // env_bytes} fit"
        )


def checked_reset_mask(mask: Any, num_envs: int) -> npt.NDArray[np.bool_]:
    """Which envs ``reset`` is to reset, in an array of its own; None: all."""
    if mask is None:
        return np.ones(num_envs, dtype=np.bool_)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise TypeError(
            f"reset: reset_mask must be a numpy array of bool, got {getattr(mask, 'dtype', type(mask).__name__)}"
        )
    if mask.shape != (num_envs,) or not mask.any():
        raise ValueError(
            f"reset: reset_mask must have shape ({num_envs},) and at least one True, got shape "
            f"{mask.shape} with {int(mask.sum())} True"
        )
    return mask.copy()
