"""Where the wall time of a training loop goes, by stage, at a cost that is itself measured."""

from __future__ import annotations

import functools
import statistics
import time
from dataclasses import dataclass
from types import TracebackType

_now = time.perf_counter_ns


@dataclass(frozen=True)
class StageTimes:
    """One interval of a clock."""

    wall_s: float
    seconds: dict[str, float]  # by stage, without the stages inside it
    counts: dict[str, int]
    own_share: float  # of the wall time that the clock itself took

    @property
    def shares(self) -> dict[str, float]:
        """Share of the wall time by stage, and what is left as ``other``; the sum is 1."""
        if not self.wall_s:
            return {}
        shares = {name: seconds / self.wall_s for name, seconds in self.seconds.items()}
        return {**shares, "other": max(0.0, 1 - sum(shares.values()))}


class _Stage:
    """What ``with clock(name)`` enters: kept, so that a stamp makes no object."""

    __slots__ = ("_clock", "count", "ns")

    def __init__(self, clock: StageClock) -> None:
        self._clock = clock
        self.ns = 0
        self.count = 0

    def __enter__(self) -> None:
        clock = self._clock
        now = _now()
        clock._running.ns += now - clock._mark
        clock._outer.append(clock._running)
        clock._running, clock._mark = self, now
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        clock = self._clock
        now = _now()
        clock._running.ns += now - clock._mark
        clock._running, clock._mark = clock._outer.pop(), now


class StageClock:
    """Charges each moment to one stage, the innermost; for one thread.

    It is the host's time: a stage that only starts work on a GPU ends when that is started, and the stage that waits
    for it is charged.

    Example:
        >>> clock = StageClock()
        >>> while training:
        ...     with clock("act"):
        ...         actions = act()
        ...     with clock("learn"):
        ...         learn()
        >>> clock.take().shares
        {'act': 0.1, 'learn': 0.85, 'other': 0.05}
    """

    def __init__(self) -> None:
        self._stages: dict[str, _Stage] = {}
        self._outer: list[_Stage] = []
        self._running = _Stage(self)
        self._mark = self._taken = _now()

    def __call__(self, name: str) -> _Stage:
        """A context that is charged to ``name``."""
        stage = self._stages.get(name)
        if stage is None:
            stage = self._stages[name] = _Stage(self)
        return stage

    def take(self) -> StageTimes:
        """The times since the last call; a stage under way is charged up to now and goes on."""
        now = _now()
        self._running.ns += now - self._mark
        wall_ns, self._mark, self._taken = now - self._taken, now, now
        stamps = 2 * sum(stage.count for stage in self._stages.values())
        times = StageTimes(
            wall_s=wall_ns / 1e9,
            seconds={name: stage.ns / 1e9 for name, stage in self._stages.items()},
            counts={name: stage.count for name, stage in self._stages.items()},
            own_share=stamps * stamp_cost_ns() / wall_ns if wall_ns else 0.0,
        )
        for stage in self._stages.values():
            stage.ns = stage.count = 0
        return times


@functools.cache
def stamp_cost_ns() -> float:
    """What one stamp (the beginning or the end of a stage) costs on this machine; measured once, in about 5 ms."""
    clock, blocks, costs = StageClock(), 1000, []
    for _ in range(7):
        began = _now()
        for _ in range(blocks):
            with clock("stage"):
                pass
        costs.append((_now() - began) / (2 * blocks))
    return statistics.median(costs)
