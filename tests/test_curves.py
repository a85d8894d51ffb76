"""Curves over seeds: interpolated, never extrapolated, and honest about how many seeds they rest on."""

from __future__ import annotations

import numpy as np
import pytest

from fastrl.runs.curves import curve_over_seeds
from fastrl.runs.statistics import iqm


def line(first: float, last: float, slope: float, offset: float = 0.0, rows: int = 11) -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(first, last, rows)
    return x, slope * x + offset


def test_seeds_logged_at_different_moments_meet_on_one_grid() -> None:
    curve = curve_over_seeds([line(0, 100, 1.0, rows=7), line(0, 100, 3.0, rows=12)], np.mean, points=51)

    np.testing.assert_allclose(curve.centre, 2 * curve.x)
    np.testing.assert_allclose(curve.low, curve.x)
    np.testing.assert_allclose(curve.high, 3 * curve.x)
    assert set(curve.count) == {2}


def test_no_seed_counts_beyond_its_own_range() -> None:
    """Held at its last value, the short seed would pull the curve down; extrapolated, up."""
    curve = curve_over_seeds([line(0, 100, 1.0), line(0, 50, 1.0, offset=-10), line(20, 100, 1.0)], np.mean, points=101)

    np.testing.assert_array_equal(curve.count[:20], 2)
    np.testing.assert_array_equal(curve.count[20:51], 3)
    np.testing.assert_array_equal(curve.count[51:], 2)
    np.testing.assert_allclose(curve.centre[51:], curve.x[51:])
    np.testing.assert_allclose(curve.centre[20:51], curve.x[20:51] - 10 / 3)


def test_where_one_seed_is_left_there_is_no_interval() -> None:
    curve = curve_over_seeds([line(0, 100, 1.0), line(0, 50, 1.0)], iqm, points=11)

    assert np.isnan(curve.low[curve.count == 1]).all()
    assert not np.isnan(curve.low[curve.count == 2]).any()
    assert not np.isnan(curve.centre).any()


def test_ends_that_differ_by_a_hair_are_cut_to_what_all_seeds_reach() -> None:
    curve = curve_over_seeds([line(0, 100, 1.0), line(0.5, 99, 1.0), line(1, 100, 1.0)], np.mean)

    assert (curve.x[0], curve.x[-1]) == (1, 99)
    assert set(curve.count) == {3}


def test_a_seed_that_stopped_early_does_not_make_the_others_end_raggedly() -> None:
    curve = curve_over_seeds([line(0, 100, 1.0), line(0, 99, 1.0), line(0, 50, 1.0)], np.mean, points=100)

    assert curve.x[-1] == 99
    np.testing.assert_array_equal(curve.count, [3] * 51 + [2] * 49)


def test_what_was_not_measured_does_not_count() -> None:
    x, y = line(0, 100, 1.0)
    y[:3] = np.nan  # no game has ended yet
    y[6] = np.nan

    curve = curve_over_seeds([(x, y), (x, np.full(11, np.nan))], np.mean, points=71)

    assert curve.x[0] == 30
    np.testing.assert_allclose(curve.centre, curve.x)
    assert set(curve.count) == {1}


def test_a_gap_between_seeds_is_no_part_of_the_curve() -> None:
    curve = curve_over_seeds([line(0, 20, 1.0), line(80, 100, 1.0)], np.mean, points=101)

    assert not ((curve.x > 20) & (curve.x < 80)).any()


def test_a_single_row_is_a_point_and_nothing_at_all_is_refused() -> None:
    curve = curve_over_seeds([(np.array([5.0]), np.array([2.0]))], iqm)

    assert (curve.x.tolist(), curve.centre.tolist(), curve.count.tolist()) == ([5.0], [2.0], [1])

    with pytest.raises(ValueError, match="no seed has a value"):
        curve_over_seeds([(np.array([5.0]), np.array([np.nan]))], iqm)
