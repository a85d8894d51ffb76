"""One learning curve out of those of several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastrl.runs.statistics import Statistic, stratified_bootstrap

# Each point of a band has its own interval: fewer repetitions than for a table, and still finer than a line is wide.
_REPETITIONS = 2_000

# Seeds log at slightly different moments. Ends of this share of a curve, which not all of them reach, are no news.
_RAGGED_END = 0.02


@dataclass(frozen=True)
class Curve:
    """Values over x. Where ``count`` is 1, ``low`` and ``high`` are nan: one seed has no interval."""

    x: np.ndarray
    centre: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: np.ndarray  # how many seeds reach this point


def curve_over_seeds(seeds: Sequence[tuple[np.ndarray, np.ndarray]], statistic: Statistic, points: int = 200) -> Curve:
    """The statistic of all seeds at evenly spaced x, with pointwise 95% bootstrap intervals.

    Between its rows a seed is interpolated linearly. It is never extrapolated: before its first and after its last
    value it does not count, and ``count`` says how many do.

    Args:
        seeds: for each seed x and values of equal length; nan marks what was not measured.
        statistic: as :func:`fastrl.runs.statistics.stratified_bootstrap` takes it.
        points: how many x.

    Raises:
        ValueError: no seed has a value.

    >>> seeds = [(np.array([0, 8]), np.array([0, 8])), (np.array([0, 4]), np.array([2, 6]))]
    >>> curve = curve_over_seeds(seeds, np.mean, points=3)
    >>> curve.x.tolist(), curve.centre.tolist(), curve.count.tolist()
    ([0.0, 4.0, 8.0], [1.0, 5.0, 8.0], [2, 2, 1])
    """
    measured = [(x[~np.isnan(x + y)], y[~np.isnan(x + y)]) for x, y in seeds]
    measured = [(x, y) for x, y in measured if len(x)]
    if not measured:
        raise ValueError("curve_over_seeds: no seed has a value; at least one is needed")
    x = _grid([own for own, _ in measured], points)
    values = np.array([np.interp(x, own, y, left=np.nan, right=np.nan) for own, y in measured])
    # A gap that no seed covers (a short one, and one that began later) is no part of the curve.
    covered = ~np.isnan(values).all(axis=0)
    x, values = x[covered], values[:, covered]
    centre, low, high = (np.full(len(x), np.nan) for _ in range(3))
    for point in range(len(x)):
        present = values[~np.isnan(values[:, point]), point][:, np.newaxis]
        centre[point] = statistic(present, axis=(-2, -1))
        # The same seed at every point draws the same seeds everywhere, so that bands are as smooth as the curves.
        interval = stratified_bootstrap(present, statistic, _REPETITIONS, rng=0)
        if interval is not None:
            low[point], high[point] = interval
    return Curve(x, centre, low, high, (~np.isnan(values)).sum(axis=0))


def _grid(seeds: list[np.ndarray], points: int) -> np.ndarray:
    first, last = min(x[0] for x in seeds), max(x[-1] for x in seeds)
    # Seeds that begin (end) within a hair of the first (last) one do so together.
    ragged = (last - first) * _RAGGED_END
    first = max(x[0] for x in seeds if x[0] - first <= ragged)
    last = min(x[-1] for x in seeds if last - x[-1] <= ragged)
    return np.linspace(first, last, points) if last > first else np.array([last], dtype=np.float64)
