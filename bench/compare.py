"""What got slower between two benchmark runs, beyond noise.

    python bench/compare.py BEFORE.json[,BEFORE.json...] AFTER.json[,AFTER.json...]

Both are files of ``--benchmark-json`` or of bench/kept_results.py; several of a side, separated by commas, are runs of
the same code. Times are told in a fixed piece of work that was timed in the same rounds (bench/calibration.py), so the
runs may be of different machines, or of hours of one. A contest got slower if the whole interval of its change (99%) is
on that side, by 3% at least; the exit code is 1 then, and 2 if nothing could be compared.

Two runs of the same code differ by more than their rounds do: another process has other memory, and where it lies may
decide. So the interval has two parts: rounds are drawn again (bootstrap), and runs scatter as far as runs of equal code
did. How far is learnt from the runs given, if a side has several, and from runs of one commit in bench/results.
Contests of which there are none are taken to scatter by 6%, as steady ones do.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from kept_results import read

_RESULTS = Path(__file__).resolve().parent / "results"
_KEPT = ("seconds", "calibration_seconds", "work_per_round")
_LEAST_CHANGE = 0.03
_LEAST_ROUNDS = 5  # of fewer, the furthest of a bootstrap's medians are the rounds themselves
_RESAMPLES = 4000
_INTERVAL = (0.5, 99.5)  # percentiles
# Standard deviation of a run's median (of logarithms) beyond what its rounds explain. The twelve MuJoCo contests of two
# runs four hours apart (2026-11-22-mujoco, -later) differ no further than their rounds do, to some 0.06. Others are far
# from that: a million frames in memory was 1.7 times as fast two minutes later (2026-11-22-replay, -again).
_STEADY = 0.06
_WEIGHT_OF_STEADY = 4  # in runs: what a contest's own runs have to outweigh


class NotComparableError(Exception):
    """Why a contest has no change to tell."""


@dataclass(frozen=True)
class Change:
    """Of one contest: how many times as fast AFTER is as BEFORE, and between which bounds."""

    name: str
    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.high < 1 - _LEAST_CHANGE:
            return "SLOWER"
        return "faster" if self.low > 1 + _LEAST_CHANGE else "same"


def in_calibrations(contest: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Logarithms of the times of a unit of work, round by round, in calibrations of the same rounds.

    Raises:
        NotComparableError: the figures are not there, or are none.
    """
    if not all(contest.get(name) for name in _KEPT):
        raise NotComparableError("one of them is from before calibrations, whose rounds were not kept")
    try:
        seconds, calibrations, work = (np.asarray(contest[name], np.float64) for name in _KEPT)
    except (TypeError, ValueError):
        raise NotComparableError("its seconds, calibrations or work are no numbers: the file is damaged") from None
    if seconds.ndim != 1 or seconds.shape != calibrations.shape or work.ndim:
        raise NotComparableError(
            f"{seconds.size} seconds and {calibrations.size} calibrations, which should be one each of every round: "
            "the file is damaged"
        )
    if not all(np.all(np.isfinite(values) & (values > 0)) for values in (seconds, calibrations, work)):
        raise NotComparableError("its seconds, calibrations or work are not all above 0: the file is damaged")
    return np.log(seconds) - np.log(work) - np.log(calibrations)


def scatter(medians: Sequence[float]) -> tuple[float, int]:
    """Of runs of the same code: the squares of their distances to the mean, and how many of these are free."""
    return float(np.square(np.array(medians) - np.mean(medians)).sum()), len(medians) - 1


@functools.cache
def kept_scatter(folder: Path) -> dict[str, tuple[float, int]]:
    """By contest: how runs of one commit on one kind of machine scattered, of all that are kept in the folder."""
    runs: dict[tuple[str, str, str], list[float]] = {}
    for path in sorted(folder.glob("*.json")):
        found = read(path)
        for name, contest in found["contests"].items():
            try:
                median = float(np.median(in_calibrations(contest)))
            except NotComparableError:
                continue
            if found["commit"] and not found["dirty"]:
                runs.setdefault((name, found["commit"], str(found["machine"].get("cpu"))), []).append(median)
    learnt: dict[str, tuple[float, int]] = {}
    for (name, _, _), medians in runs.items():
        squares, free = scatter(medians)
        before = learnt.get(name, (0.0, 0))
        learnt[name] = before[0] + squares, before[1] + free
    return learnt


def change(
    name: str, before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], kept: tuple[float, int] = (0.0, 0)
) -> Change:
    """From the rounds of all runs of both sides.

    Args:
        name: of the contest.
        before: its figures in each run.
        after: likewise.
        kept: how earlier runs of it scattered.

    Raises:
        NotComparableError: there are too few rounds, or no figures.
    """
    sides = [[in_calibrations(one) for one in runs] for runs in (before, after)]
    fewest = min(len(times) for runs in sides for times in runs)
    if fewest < _LEAST_ROUNDS:
        raise NotComparableError(f"too few rounds: {fewest} in one run, {_LEAST_ROUNDS} or more tell noise (--quick?)")
    rng = np.random.default_rng(0)
    squares, free = kept[0] + _WEIGHT_OF_STEADY * _STEADY**2, kept[1] + _WEIGHT_OF_STEADY
    centres, resampled = [], []
    for runs in sides:
        medians = [float(np.median(times)) for times in runs]
        own_squares, own_free = scatter(medians)
        squares, free = squares + own_squares, free + own_free
        centres.append(np.mean(medians))
        drawn = [np.median(rng.choice(times, size=(_RESAMPLES, len(times))), axis=1) for times in runs]
        resampled.append(np.mean(drawn, axis=0))
    of_runs = math.sqrt(squares / free * (1 / len(before) + 1 / len(after)))
    differences = resampled[0] - resampled[1] + rng.normal(0, of_runs, _RESAMPLES)
    low, high = np.percentile(differences, _INTERVAL)
    return Change(name, math.exp(centres[0] - centres[1]), math.exp(low), math.exp(high))


def compared(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> tuple[list[Change], list[str]]:
    """The changes of what both sides' runs have, and a line for each contest that cannot be compared."""
    changes, others = [], []
    learnt = kept_scatter(_RESULTS)
    for name in sorted({name for run in (*before, *after) for name in run["contests"]}):
        sides = [[run["contests"][name] for run in runs if name in run["contests"]] for runs in (before, after)]
        if not all(sides):
            others.append(f"{name}: only in {'AFTER' if sides[1] else 'BEFORE'}")
            continue
        try:
            changes.append(change(name, *sides, learnt.get(name, (0.0, 0))))
        except NotComparableError as error:
            others.append(f"{name}: {error}")
    return changes, others


def runs_of(argument: str) -> list[dict[str, Any]]:
    """The files of one side.

    Raises:
        ValueError: one cannot be read, is none of ours, or is given twice: a run says nothing about its own scatter.
    """
    paths = [Path(part) for part in argument.split(",")]
    for one, other in itertools.combinations(paths, 2):
        if one.resolve() == other.resolve():
            raise ValueError(f"{argument}: {one} is there twice; give each run of a side once")
    return [read(path) for path in paths]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench/compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", metavar="BEFORE", help="a file, or several of the same code, separated by commas")
    parser.add_argument("after", metavar="AFTER", help="likewise")
    given = parser.parse_args(arguments)
    try:
        before, after = runs_of(given.before), runs_of(given.after)
        changes, others = compared(before, after)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for word, runs in (("before", before), ("after", after)):
        for one in runs:
            state = " and changed files" if one["dirty"] else ""
            print(f"{word:<7}{one['datetime'][:16]}  commit {one['commit']}{state}  {one['machine'].get('cpu')}")
    width = max((len(one.name) for one in changes), default=0)
    for one in changes:
        print(f"{one.name:<{width}}  {one.ratio:5.2f}x  [{one.low:.2f}, {one.high:.2f}]  {one.verdict}")
    for line in others:
        print(line)
    if not changes:
        print("0 compared: give two runs that share contests, in full (without --quick)", file=sys.stderr)
        return 2
    slower = [one.name for one in changes if one.verdict == "SLOWER"]
    print(f"{len(changes)} compared, {len(slower)} slower beyond noise" + "".join(f"\n  {name}" for name in slower))
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
