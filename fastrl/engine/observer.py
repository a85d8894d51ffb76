"""Looking at a replay of another process, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from fastrl.engine.rules import whole_number

if TYPE_CHECKING:
    from fastrl.engine.replay import Replay

# Looks at steps that a writer overwrites meanwhile, until that is a fault.
_MOST_TRIES = 100
# Of what Replay.stats() counts, what does not belong to the process that draws.
_STATS = ("steps_published", "lanes_written", "writer_pids", "silent_s", "region_bytes")


@dataclass(slots=True, eq=False)
class Steps:
    """Neighbouring steps of one lane, the oldest first: each an observation, and the step that led to it."""

    step: npt.NDArray[np.uint64]  # its number in the lane
    obs: npt.NDArray[Any]
    action: npt.NDArray[Any]  # action and reward say nothing where `first`
    reward: npt.NDArray[np.float32]
    episode: npt.NDArray[np.uint32]
    first: npt.NDArray[np.bool_]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]


class Observer:
    """A read-only view of a replay of another process, see :meth:`Replay.observe`. A context manager.

    Its writers know nothing of it and never wait for it; its memory is mapped so that this process cannot write there.
    It goes on showing what was written last when the process that made the replay has ended; the memory is freed when
    the last observer is closed, too.

    Example:
        >>> with Replay.observe(handle) as observer:  # doctest: +SKIP
        ...     observer.stacks().shape, observer.newest(lane=0, count=100).reward.sum()
    """

    def __init__(self, replay: Replay) -> None:
        self._attached: Replay | None = replay
        self.lanes = replay.lanes
        self.stack = replay.stack
        self.obs_shape = replay.obs_shape
        self.obs_dtype = replay.obs_dtype
        self.action_shape = replay.action_shape
        self.action_dtype = replay.action_dtype
        self.padding = replay.padding
        self.capacity = replay.capacity

    def boundary(self) -> list[int]:
        """How many steps each lane has published by now."""
        return self._replay("boundary").boundary()

    def stacks(self, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """The newest stack of every lane, (lanes, stack, *obs_shape): what a policy acts on."""
        return self._replay("stacks").stacks(out)

    def newest(self, lane: int, count: int = 1) -> Steps:
        """The newest ``count`` steps of a lane, or as many as there are."""
        replay = self._replay("newest")
        kept = replay.capacity // replay.lanes - replay.guard_steps
        whole_number("newest: lane", lane, 0, self.lanes - 1)
        whole_number("newest: count", count, 1, kept)
        likes = np.empty(self.obs_shape, self.obs_dtype), np.empty(self.action_shape, self.action_dtype)
        for _ in range(_MOST_TRIES):
            end = replay.boundary()[lane]
            found = replay._ring.look(lane, max(0, end - count), end, *likes)
            if found is not None:
                return Steps(**found)
        raise RuntimeError(
            f"newest: lane {lane} was overwritten while {count} of its {kept} steps were copied, {_MOST_TRIES} times; "
            f"ask for fewer"
        )

    def stats(self) -> dict[str, Any]:
        """Of each lane what :meth:`fastrl.Replay.stats` says of it; ``region_bytes``."""
        found = self._replay("stats").stats()
        return {name: found[name] for name in _STATS}

    def stalls(self, after_s: float = 2.0) -> dict[int, str]:
        """See :meth:`fastrl.Replay.stalls`."""
        return self._replay("stalls").stalls(after_s)

    def close(self) -> None:
        """Let go of the memory."""
        self._attached = None

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refused(self, operation: str) -> NoReturn:
        raise PermissionError(
            f"{operation}: an observer only looks; use Replay.attach(handle) to write lanes or to sample"
        )

    def writer(self, lane: int) -> NoReturn:
        """Refused."""
        self._refused("writer")

    def sink(self) -> NoReturn:
        """Refused."""
        self._refused("sink")

    def sample(self, *_: Any, **__: Any) -> NoReturn:
        """Refused."""
        self._refused("sample")

    def save(self, *_: Any, **__: Any) -> NoReturn:
        """Refused."""
        self._refused("save")

    def load(self, saved: Any) -> NoReturn:
        """Refused."""
        self._refused("load")

    def _replay(self, operation: str) -> Replay:
        if self._attached is None:
            raise RuntimeError(f"{operation}: this observer is closed; call Replay.observe(handle) again")
        return self._attached
