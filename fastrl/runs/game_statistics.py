"""What is known of the full games that a run has played."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

_SMOOTHING = 0.05  # weight of the newest game in the smoothed return


class GameStatistics:
    """What is known of the full games played: means over the last ``window``, and a smoothed return.

    Example:
        >>> games = GameStatistics()
        >>> games.add(21.0, frames=8000, steps=2000)
        >>> games.mean_return
        21.0
    """

    def __init__(self, window: int = 100) -> None:
        if window < 1:
            raise ValueError(f"GameStatistics: window {window}; at least 1 is allowed")
        self.window = window
        self.count = 0
        self.smoothed: float | None = None
        self._games: deque[tuple[float, int, int]] = deque(maxlen=window)

    def add(self, return_: float, frames: int, steps: int) -> None:
        """A full game has ended."""
        self.count += 1
        last = return_ if self.smoothed is None else self.smoothed
        self.smoothed = last + _SMOOTHING * (return_ - last)
        self._games.append((float(return_), int(frames), int(steps)))

    @property
    def mean_return(self) -> float | None:
        """Of the last ``window`` games; None before the first."""
        return self._mean(0)

    @property
    def mean_length_frames(self) -> float | None:
        """Of the last ``window`` games, in emulator frames."""
        return self._mean(1)

    @property
    def mean_length_steps(self) -> float | None:
        """Of the last ``window`` games, in decisions."""
        return self._mean(2)

    def spread(self) -> dict[str, float | None]:
        """How far the last ``window`` games lie apart, as columns of a row; None before the first."""
        row: dict[str, float | None] = {}
        for name, column in (("return", 0), ("length", 2)):
            found = [float(game[column]) for game in self._games]
            row[f"{name}_std_{self.window}"] = statistics.pstdev(found) if found else None
            row[f"{name}_min_{self.window}"] = min(found, default=None)
            row[f"{name}_max_{self.window}"] = max(found, default=None)
        return row

    def _mean(self, column: int) -> float | None:
        return math.fsum(game[column] for game in self._games) / len(self._games) if self._games else None

    def state(self) -> dict[str, Any]:
        """Numbers for JSON; ``load`` goes on from them exactly."""
        return {"window": self.window, "count": self.count, "smoothed": self.smoothed, "games": list(self._games)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        if state["window"] != self.window:
            raise ValueError(f"GameStatistics: a state of window {state['window']}; this one has window {self.window}")
        self.count, self.smoothed = state["count"], state["smoothed"]
        self._games = deque((tuple(game) for game in state["games"]), self.window)
