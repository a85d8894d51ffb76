"""What a handful of seeds says: the interquartile mean, and how far it can be trusted.

The mean of a few runs hangs on its luckiest one and the median ignores most of what was measured; the interquartile
mean (Agarwal et al. 2021) drops the lowest and highest quarter and uses the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

# Resampled scores held at once: 16 MB of them, whatever the number of repetitions.
_SCORES_AT_ONCE = 2_000_000

# Called as statistic(resamples, axis=(-2, -1)) with resamples of shape (repetitions, runs, tasks), as np.mean can be.
Statistic = Callable[..., Any]


def iqm(scores: Any, axis: int | tuple[int, ...] | None = None) -> Any:
    """The mean of the middle half of all scores, runs and tasks alike.

    A quarter of the scores, rounded down to whole ones, is dropped at either end: of three nothing, of four the lowest
    and the highest.

    Args:
        scores: numbers, in any shape.
        axis: the axes to look along; None: all of them.

    >>> float(iqm([1.0, 2.0, 4.0, 100.0]))
    3.0
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0:
        raise ValueError("iqm: no scores were given; at least one is needed")
    if np.isnan(values).any():
        raise ValueError("iqm: a score is nan; leave out what was not measured")
    axes = tuple(range(values.ndim)) if axis is None else np.atleast_1d(axis)
    count = int(np.prod([values.shape[a] for a in axes], dtype=np.int64))
    together = np.moveaxis(values, axes, range(-len(axes), 0))
    together = together.reshape(*together.shape[: values.ndim - len(axes)], count)
    cut = count // 4
    return np.sort(together, axis=-1)[..., cut : count - cut].mean(axis=-1)


def stratified_bootstrap(
    scores: Any,
    statistic: Statistic = iqm,
    repetitions: int = 50_000,
    confidence: float = 0.95,
    rng: np.random.Generator | int = 0,
) -> tuple[float, float] | None:
    """An interval that holds the statistic of endlessly many runs with about the given confidence.

    In each repetition every task draws as many runs as it has, with replacement, independently of the other tasks; the
    interval leaves out equal shares of the repetitions at both ends. With fewer than about ten runs it is too narrow:
    what five seeds did not show, no resampling of them can.

    Args:
        scores: of shape (runs, tasks).
        statistic: called as ``statistic(resamples, axis=(-2, -1))``; :func:`iqm`, ``np.mean`` and ``np.median`` serve.
        repetitions: how often to resample. Memory does not grow with it.
        confidence: the share of repetitions inside, between 0 and 1.
        rng: a generator, or a seed of one; the same gives the same interval.

    Returns:
        The lower and the upper end; None for a single run, which says nothing about others.

    >>> stratified_bootstrap([[10.0], [12.0], [14.0]], np.mean, repetitions=1000)
    (10.0, 14.0)
    >>> stratified_bootstrap([[10.0]]) is None
    True
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"stratified_bootstrap: scores have shape {values.shape}, expected (runs, tasks), not empty")
    if not np.isfinite(values).all():
        raise ValueError("stratified_bootstrap: a score is nan or infinite; leave out what was not measured")
    if repetitions < 1:
        raise ValueError(f"stratified_bootstrap: repetitions is {repetitions}, expected at least 1")
    if not 0 < confidence < 1:
        raise ValueError(f"stratified_bootstrap: confidence is {confidence}, expected a share between 0 and 1")
    runs, tasks = values.shape
    if runs == 1:
        return None
    generator = np.random.default_rng(rng)
    results = np.empty(repetitions)
    at_once = max(1, _SCORES_AT_ONCE // values.size)
    for begin in range(0, repetitions, at_once):
        count = min(at_once, repetitions - begin)
        drawn = generator.integers(0, runs, size=(count, runs, tasks))
        resamples = np.take_along_axis(values[np.newaxis], drawn, axis=1)
        results[begin : begin + count] = statistic(resamples, axis=(-2, -1))
    outside = (1 - confidence) / 2
    low, high = np.quantile(results, [outside, 1 - outside])
    return float(low), float(high)
