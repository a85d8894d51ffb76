"""What got slower between two benchmark runs, beyond noise.

    python bench/compare.py BEFORE.json AFTER.json

Both are files of ``--benchmark-json`` or of bench/kept_results.py. Times are told in a fixed piece of work that was
timed in the same rounds (bench/calibration.py), so the runs may be of different machines, or of hours of one. A contest
got slower if the whole interval of its change (bootstrap over rounds, 99%) is on that side, by 3% at least; the exit
code is 1 then.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from kept_results import read

_KEPT = {"seconds", "calibration_seconds", "work_per_round"}
_LEAST_CHANGE = 0.03
_LEAST_ROUNDS = 3
_RESAMPLES = 4000
_INTERVAL = (0.5, 99.5)  # percentiles


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
    """Logarithms of the times of a unit of work, round by round, in calibrations of the same rounds."""
    seconds = np.array(contest["seconds"], np.float64) / contest["work_per_round"]
    return np.log(seconds) - np.log(np.array(contest["calibration_seconds"], np.float64))


def change(name: str, before: dict[str, Any], after: dict[str, Any]) -> Change:
    """From the rounds of both."""
    rng = np.random.default_rng(0)
    both = [in_calibrations(one) for one in (before, after)]
    medians = [np.median(times[rng.integers(len(times), size=(_RESAMPLES, len(times)))], axis=1) for times in both]
    low, high = np.percentile(medians[0] - medians[1], _INTERVAL)
    middle = float(np.median(both[0]) - np.median(both[1]))
    return Change(name, math.exp(middle), math.exp(low), math.exp(high))


def compared(before: dict[str, Any], after: dict[str, Any]) -> tuple[list[Change], list[str]]:
    """The changes of what both have, and a line for each contest that cannot be compared."""
    changes, others = [], []
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            others.append(f"{name}: only in {'AFTER' if name in after else 'BEFORE'}")
            continue
        pair = before[name], after[name]
        if any(not set(one) >= _KEPT or len(one["seconds"]) != len(one["calibration_seconds"]) for one in pair):
            others.append(f"{name}: one of them is from before calibrations, whose rounds were not kept")
        elif any(len(one["seconds"]) < _LEAST_ROUNDS for one in pair):
            others.append(f"{name}: fewer than {_LEAST_ROUNDS} rounds say nothing about noise (--quick?)")
        else:
            changes.append(change(name, *pair))
    return changes, others


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    if len(arguments) != 2:
        print("usage: python bench/compare.py BEFORE.json AFTER.json", file=sys.stderr)
        return 2
    try:
        before, after = (read(Path(path)) for path in arguments)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for word, one in (("before", before), ("after", after)):
        print(f"{word:<7}{one['datetime'][:16]}  commit {one['commit']}  {one['machine'].get('cpu')}")
    changes, others = compared(before["contests"], after["contests"])
    width = max((len(one.name) for one in changes), default=0)
    for one in changes:
        print(f"{one.name:<{width}}  {one.ratio:5.2f}x  [{one.low:.2f}, {one.high:.2f}]  {one.verdict}")
    print("\n".join(others))
    slower = [one.name for one in changes if one.verdict == "SLOWER"]
    print(f"{len(changes)} compared, {len(slower)} slower beyond noise" + "".join(f"\n  {name}" for name in slower))
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
