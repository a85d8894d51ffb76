"""The interquartile mean and bootstrap intervals, against numbers worked by hand and known distributions."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from fastrl.runs import statistics
from fastrl.runs.statistics import iqm, stratified_bootstrap


@pytest.mark.parametrize(
    ("scores", "expected"),
    [  # each as scipy.stats.trim_mean(scores, 0.25, axis=None) has it
        ([7.0], 7.0),
        ([1.0, 2.0, 6.0], 3.0),  # a quarter of three is less than one: nothing is dropped
        ([100.0, 1.0, 4.0, 2.0], 3.0),
        ([0.0, 1.0, 2.0, 6.0, 99.0], 3.0),
        ([-50.0, -40.0, 1.0, 2.0, 3.0, 6.0, 80.0, 90.0], 3.0),
        ([[0.0, 10.0, 1.0], [2.0, 3.0, 4.0], [5.0, -90.0, 99.0]], 3.0),  # -90, 0 and 10, 99 go; 1..5 stay
    ],
)
def test_iqm_of_hand_worked_scores(scores: Any, expected: float) -> None:
    assert iqm(scores) == pytest.approx(expected)


def test_iqm_is_over_runs_and_tasks_together() -> None:
    """Not the mean of each task's own: a task that is always worst is dropped as a whole."""
    scores = np.array([[-1000.0, 1.0, 2.0, 1e6], [-2000.0, 3.0, 4.0, 2e6]])

    assert iqm(scores) == pytest.approx(2.5)
    assert iqm(scores, axis=0).mean() > 1e5


def test_iqm_along_axes_is_the_iqm_of_each_part() -> None:
    scores = np.random.default_rng(3).normal(size=(4, 7, 5))

    np.testing.assert_allclose(iqm(scores, axis=(-2, -1)), [iqm(part) for part in scores])
    np.testing.assert_allclose(iqm(scores, axis=0), iqm(np.moveaxis(scores, 0, 2), axis=2))


@pytest.mark.parametrize(("scores", "message"), [([], "no scores"), ([1.0, float("nan"), 2.0], "a score is nan")])
def test_iqm_refuses_what_has_no_middle(scores: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        iqm(scores)


def coverage(runs: int, statistic: statistics.Statistic, draw: Any, truth: float, trials: int = 400) -> float:
    """How often the 95% interval of so many runs of two tasks holds the true value."""
    hits = 0
    for trial in range(trials):
        scores = draw(np.random.default_rng(trial), (runs, 2))
        interval = stratified_bootstrap(scores, statistic, repetitions=500, rng=trial)
        assert interval is not None
        hits += interval[0] <= truth <= interval[1]
    return hits / trials


@pytest.mark.parametrize(
    ("statistic", "draw", "truth"),
    [
        (np.mean, lambda rng, shape: rng.normal(5.0, 2.0, shape), 5.0),
        (iqm, lambda rng, shape: rng.normal(5.0, 2.0, shape), 5.0),
        # The middle half of an exponential distribution: twice the integral of -log(1 - q) over q from 1/4 to 3/4.
        (iqm, lambda rng, shape: rng.exponential(1.0, shape), 1 + np.log(4) - 1.5 * np.log(3)),
    ],
    ids=["mean", "iqm", "iqm of a skewed one"],
)
def test_95_percent_intervals_of_many_runs_hold_the_truth_95_times_of_100(
    statistic: statistics.Statistic, draw: Any, truth: float
) -> None:
    assert 0.91 <= coverage(30, statistic, draw, truth) <= 0.98


def test_the_intervals_of_few_runs_are_too_narrow_as_the_documentation_says() -> None:
    assert 0.7 <= coverage(4, np.mean, lambda rng, shape: rng.normal(0.0, 1.0, shape), 0.0) <= 0.92


def test_tasks_are_resampled_on_their_own() -> None:
    """Two tasks of opposite order: drawn together they would cancel in every resample, drawn apart they do not."""
    scores = np.array([[0.0, 10.0], [10.0, 0.0], [0.0, 10.0], [10.0, 0.0]])

    low, high = stratified_bootstrap(scores, np.mean, repetitions=2000) or (0.0, 0.0)

    assert low < 3.0
    assert high > 7.0


def test_a_task_keeps_its_own_scores() -> None:
    """Resampling over everything at once would mix the levels of tasks and widen the interval a hundredfold."""
    scores = np.array([[0.0, 1000.0], [1.0, 1001.0], [2.0, 1002.0]])

    low, high = stratified_bootstrap(scores, np.mean, repetitions=2000) or (0.0, 0.0)

    assert 500.0 <= low < high <= 502.0


def test_the_interval_of_two_runs_is_their_range() -> None:
    """A quarter of all resamples is twice the lower run and a quarter twice the higher one."""
    assert stratified_bootstrap([[3.0], [8.0]]) == (3.0, 8.0)
    assert stratified_bootstrap([[3.0], [8.0]], np.mean, confidence=0.4) == (5.5, 5.5)


def test_a_single_run_has_no_interval() -> None:
    assert stratified_bootstrap([[1.0, 2.0, 3.0]]) is None


def test_equal_seeds_give_equal_intervals() -> None:
    scores = np.random.default_rng(1).normal(size=(5, 3))

    first = stratified_bootstrap(scores, repetitions=1000, rng=7)

    assert first == stratified_bootstrap(scores, repetitions=1000, rng=np.random.default_rng(7))
    assert first != stratified_bootstrap(scores, repetitions=1000, rng=8)


def test_memory_does_not_grow_with_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_SCORES_AT_ONCE", 20_000)
    scores = np.random.default_rng(1).normal(size=(10, 20))
    tracemalloc.start()
    try:
        stratified_bootstrap(scores, repetitions=3_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 3_000_000  # all resamples together would be 4.8 MB, and several times that while they are sorted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": [1.0, 2.0]}, r"shape \(2,\), expected \(runs, tasks\)"),
        ({"scores": np.empty((0, 3))}, "not empty"),
        ({"scores": [[1.0], [float("nan")]]}, "nan or infinite"),
        ({"scores": [[1.0], [2.0]], "repetitions": 0}, "repetitions is 0"),
        ({"scores": [[1.0], [2.0]], "confidence": 95}, "confidence is 95"),
    ],
)
def test_nonsense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stratified_bootstrap(**arguments)
