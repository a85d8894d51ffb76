"""Ours against peers, in turn within one run: a machine that drifts slows all of them alike.

A contest has one task; every contestant does it once a round, in the same order, and each keeps the time of every
round. What is quoted is the median, and a ratio is the median of the ratios round by round.

Beside us run peers (other libraries), the limit (what the machine or the engine allows), and references: ourselves done
otherwise, which explain a figure and are nobody to be faster than.
"""

from __future__ import annotations

import itertools
import statistics
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from calibration import calibration_s

_Made = TypeVar("_Made")
# Each peer by one spelling, so that it is one line of the table's end.
PEERS = (
    "ALE vector", "CleanRL", "cpprb", "EnvPool", "Gymnasium async", "Gymnasium sync", "SB3", "SB3 processes", "Tianshou"
)  # fmt: skip


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
        self.peers_known: dict[str, str | None] = {}  # by name: why it could not run; None: it ran
        self.notes: list[str] = []  # what else was seen, printed below the table

    def peers(self, makers: Mapping[str, Callable[..., _Made]], *arguments: Any) -> dict[str, _Made]:
        """What each makes of the arguments. One that is absent or does not start is reported, not hidden."""
        found = {}
        for name, make in makers.items():
            if name not in PEERS:
                raise ValueError(f"peer {name!r} is none of {', '.join(PEERS)}; spell it so, or add it to PEERS")
            try:
                found[name] = make(*arguments)
                self.peers_known[name] = None
            except Exception as error:
                self._cannot_run(name, error)
        return found

    def _cannot_run(self, name: str, error: Exception) -> None:
        self.peers_known[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        self.seconds.pop(name, None)

    def run(self, ours: Callable[[], Any], others: dict[str, Callable[[], Any]], rounds: int) -> None:
        """Time everyone ``rounds`` times. A task that returns a number says itself how many seconds count.

        A peer that fails leaves the contest and is reported; the limit, references and we ourselves must not.
        """

        def timed(name: str, task: Callable[[], Any]) -> None:
            began = time.perf_counter()
            said = task()
            took = time.perf_counter() - began
            self.seconds.setdefault(name, []).append(said if isinstance(said, float) else took)

        def others_first() -> None:
            self.calibration_seconds.append(calibration_s())
            for name, task in others.items():
                if self.peers_known.get(name) is not None:
                    continue
                try:
                    timed(name, task)
                except Exception as error:
                    if name not in self.peers_known:
                        raise
                    self._cannot_run(name, error)

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
                "per_calibration": self.per_calibration(),
                "limit": self.limit,
                "references": self.references(),
                "peers": self.peers_known,
                "notes": self.notes,
                # Seconds of each round, for bench/compare.py.
                "work_per_round": self.work_per_round,
                "seconds": self.seconds["fastrl"],
                "calibration_seconds": self.calibration_seconds,
            }
        )

    def peers_that_ran(self) -> list[str]:
        """By name."""
        return sorted((name for name in self.seconds if name in self.peers_known), key=str.lower)

    def references(self) -> list[str]:
        """Who ran beside us and is neither a peer nor the limit."""
        return [name for name in self.seconds if name not in ("fastrl", self.limit, *self.peers_known)]

    def per_calibration(self) -> float:
        """What we do in the time of the fixed piece of work: median over rounds. It travels between machines."""
        pairs = zip(self.calibration_seconds, self.seconds["fastrl"], strict=True)
        return self.work_per_round * statistics.median(fixed / ours for fixed, ours in pairs)

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


def in_threads(threads: int) -> str:
    """For titles."""
    return f"{threads} thread{'' if threads == 1 else 's'}"


_TITLE_COLUMNS = 30  # a longer title goes on in the next row, so that the table fits a screen


def table(contests: list[Contest]) -> str:
    """Of each contest our speed, every peer's and our ratio to it, the limit and our share of it; then the peers.

    References are in brackets, below the peers.
    """
    contests = [c for c in contests if "fastrl" in c.seconds]
    rows = [["", "fastrl", "spread", "per cal.", "beside", "speed", "ratio", "limit", "", "share"]]
    for c in contests:
        titles = textwrap.wrap(f"{c.title} [{c.unit}]", _TITLE_COLUMNS)
        names = [(name, name) for name in c.peers_that_ran()] + [(name, f"({name})") for name in c.references()]
        own = [_figure(c.speed("fastrl")), f"{c.spread():.0%}", _figure(c.per_calibration())]
        beside = [[shown, _figure(c.speed(name)), f"{c.ratio(name):.2f}"] for name, shown in names]
        bound = [[c.limit, _figure(c.speed(c.limit)), f"{c.ratio(c.limit):.2f}"]] if c.limit in c.seconds else []
        for i in range(max(len(titles), len(beside), 1)):
            parts = (own if i == 0 else [""] * 3, _at(beside, i), _at(bound, i))
            rows.append([titles[i] if i < len(titles) else "", *itertools.chain(*parts)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(_justified(row, widths)).rstrip() for row in rows]
    calibrations = [statistics.median(c.calibration_seconds) for c in contests]
    if calibrations:
        lines.append(
            f"per cal.: what fastrl does in the time of a fixed piece of work (bench/calibration.py), here "
            f"{1e3 * statistics.median(calibrations):.1f} ms"
        )
    for peer in sorted({name for c in contests for name in c.peers_known}, key=str.lower):
        ratios = [c.ratio(peer) for c in contests if peer in c.peers_that_ran()]
        known = sum(peer in c.peers_known for c in contests)
        mean = f", geometric mean of the ratios {statistics.geometric_mean(ratios):.2f}" if ratios else ""
        lines.append(f"{peer}: ran in {len(ratios)} of the {known} contests that know it{mean}")
    reasons = {f"not run: {name}: {why}" for c in contests for name, why in c.peers_known.items() if why is not None}
    lines += sorted(reasons)
    lines += [f"{c.title}: {text}" for c in contests for text in c.notes]
    return "\n".join(lines)


def _at(cells: list[list[str]], row: int) -> list[str]:
    return cells[row] if row < len(cells) else [""] * 3


def _justified(row: list[str], widths: list[int]) -> list[str]:
    """Names to the left, figures to the right."""
    names = (0, 4, 7)
    return [c.ljust(w) if i in names else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]


def _figure(speed: float) -> str:
    """Three digits at least, and no more behind the point."""
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
