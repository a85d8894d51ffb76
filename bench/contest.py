"""Ours against peers, in turn within one run: a machine that drifts slows all of them alike.

A contest has one task; every contestant does it once a round, in the same order, and each keeps the time of every
round. What is quoted is the median, and a ratio is the median of the ratios round by round.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from calibration import calibration_s

_Made = TypeVar("_Made")


class Contest:
    """One task, ours timed by pytest-benchmark, the others just before it in every round."""

    def __init__(self, benchmark: Any, title: str, unit: str, work_per_round: float, limit: str | None = None) -> None:
        self._benchmark = benchmark
        self.title = title
        self.unit = unit  # what is counted, a second: "steps/s"
        self.work_per_round = work_per_round
        self.limit = limit  # the contestant that is no peer but what the machine or the engine allows
        self.seconds: dict[str, list[float]] = {}
        self.calibration_seconds: list[float] = []  # of a fixed piece of work, in the same rounds
        self.missing: list[str] = []  # peers that could not run, and why
        self.notes: list[str] = []  # what else was seen, printed below the table

    def peers(self, makers: Mapping[str, Callable[..., _Made]], *arguments: Any) -> dict[str, _Made]:
        """What each makes of the arguments. One that is absent or does not start is reported, not hidden."""
        found = {}
        for name, make in makers.items():
            try:
                found[name] = make(*arguments)
            except Exception as error:
                self.missing.append(f"{name}: {type(error).__name__}: {error}")
        return found

    def run(self, ours: Callable[[], Any], others: dict[str, Callable[[], Any]], rounds: int) -> None:
        """Time everyone ``rounds`` times. A task that returns a number says itself how many seconds count."""

        def timed(name: str, task: Callable[[], Any]) -> None:
            began = time.perf_counter()
            said = task()
            took = time.perf_counter() - began
            self.seconds.setdefault(name, []).append(said if isinstance(said, float) else took)

        def others_first() -> None:
            self.calibration_seconds.append(calibration_s())
            for name, task in others.items():
                timed(name, task)

        def timed_ours() -> None:
            timed("fastrl", ours)

        self._benchmark.pedantic(timed_ours, setup=others_first, rounds=rounds, warmup_rounds=int(rounds > 1))
        for name in list(self.seconds):  # the warm-up is not counted
            self.seconds[name] = self.seconds[name][-rounds:]
        self.calibration_seconds = self.calibration_seconds[-rounds:]
        self._benchmark.extra_info.update(
            {
                "unit": self.unit,
                "speed": {name: self.speed(name) for name in self.seconds},
                "ratio": {name: self.ratio(name) for name in self.seconds if name != "fastrl"},
                "limit": self.limit,
                "missing": self.missing,
                "notes": self.notes,
                # Seconds of each round, for bench/compare.py.
                "work_per_round": self.work_per_round,
                "seconds": self.seconds["fastrl"],
                "calibration_seconds": self.calibration_seconds,
            }
        )

    def speed(self, name: str) -> float:
        """Median speed in ``unit``."""
        return self.work_per_round / statistics.median(self.seconds[name])

    def ratio(self, name: str) -> float:
        """How many times as fast as ``name`` we are: median over rounds."""
        pairs = zip(self.seconds[name], self.seconds["fastrl"], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def spread(self) -> float:
        """Interquartile range of our rounds over their median."""
        times = self.seconds["fastrl"]
        if len(times) < 2:
            return 0.0
        quarters = statistics.quantiles(times, n=4)
        return (quarters[2] - quarters[0]) / statistics.median(times)


def stepper(step: Callable[[Any], Any], actions: Iterable[Any]) -> Callable[[], None]:
    """A task: one step for each row of actions."""

    def run() -> None:
        for row in actions:
            step(row)

    return run


def side_by_side(play: Callable[[slice], None], threads: int) -> None:
    """Let as many threads play, each its share of the envs."""
    workers = [threading.Thread(target=play, args=(slice(i, None, threads),)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def table(contests: list[Contest]) -> str:
    """One row a contest: our speed, each peer's and our ratio to it, and our share of the limit."""
    contests = [c for c in contests if "fastrl" in c.seconds]
    peers = sorted({name for c in contests for name in c.seconds if name not in ("fastrl", c.limit)})
    header = ["", "fastrl", "spread", *[cell for p in peers for cell in (p, "ratio")], "limit", "share"]
    rows = [header]
    for c in contests:
        row = [f"{c.title} [{c.unit}]", f"{c.speed('fastrl'):,.0f}", f"{c.spread():.0%}"]
        for peer in peers:
            row += [f"{c.speed(peer):,.0f}", f"{c.ratio(peer):.2f}"] if peer in c.seconds else ["-", "-"]
        row += [f"{c.speed(c.limit):,.0f}", f"{c.ratio(c.limit):.2f}"] if c.limit in c.seconds else ["-", "-"]
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))) for r in rows
    ]
    for peer in peers:
        ratios = [c.ratio(peer) for c in contests if peer in c.seconds]
        mean = statistics.geometric_mean(ratios)
        lines.append(f"geometric mean of the ratios to {peer}: {mean:.2f} ({len(ratios)} contests)")
    missing = sorted({text for c in contests for text in c.missing})
    lines += [f"not run: {text}" for text in missing]
    lines += [f"{c.title}: {text}" for c in contests for text in c.notes]
    return "\n".join(lines)
