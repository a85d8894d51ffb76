"""Row R5 of docs/reliability.md: draws have exactly their probability, also while writers go on.

Two lanes are written by a script, one by a thread and one by another process. A batch is drawn from a boundary; while
it is, each writer may go on by as many steps as the replay leaves alone for that (``guard_steps``) and no more. So
what may be drawn is known exactly, for every batch, and it moves on with every batch.

Whatever the boundary, the place of a draw in any order of all that may be drawn, as a share of their weight, is
uniform between 0 and 1. Such shares of all batches are counted in bins together. What is drawn depends on the seed and
the boundaries alone, so the figures of a seed are the same whenever they are taken.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import threading
import time
from collections.abc import Iterator, MutableSequence, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt
from replay_oracle import GUARD_STEPS, OracleLane
from replay_processes import paced_writers, scripted, write_paced
from written_replay import GAMMA, small_replay

import fastrl

BINS = 101
# What a right sampler's p-value is not, but once in a hundred thousand times: too far off, or too regular.
LEAST_P = 1e-5

_ALPHA = 0.6
_SLOTS = 60  # of a lane: all that may be drawn is replaced every seven batches
_WEIGHT_UNIT, _MOST_WEIGHT = 1 << 20, 1 << 43  # stated here once more, on purpose


def chi_square(observed: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    seen, wanted = np.asarray(observed, float), np.asarray(expected, float)
    return float(((seen - wanted) ** 2 / wanted).sum())


def p_value(statistic: float, freedom: int) -> float:
    """The probability that a chi-square of so many degrees of freedom is larger than this."""
    half = statistic / 2
    if half <= 0:
        return 1.0
    term = 0.5 if freedom % 2 else 1.0
    found = math.erfc(math.sqrt(half)) if freedom % 2 else math.exp(-half)
    while term < freedom / 2:
        found += math.exp(term * math.log(half) - half - math.lgamma(term + 1))
        term += 1
    return min(found, 1.0)


def together(p_values: Sequence[float]) -> float:
    """One p-value for several, as Fisher has it."""
    return p_value(-2 * sum(math.log(max(p, 1e-300)) for p in p_values), 2 * len(p_values))


@dataclass
class Drawn:
    """What came of one seed."""

    draws: int = 0
    steps_meanwhile: int = 0  # published while batches were drawn
    outside: int = 0  # draws of what may not be drawn: of no weight
    updates: int = 0
    stale: int = 0
    counts: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)  # in bins, for each order

    def count(self, order: str, shares: npt.NDArray[np.float64]) -> None:
        counted = np.bincount((shares * BINS).astype(np.int64).clip(max=BINS - 1), minlength=BINS)
        self.counts[order] = self.counts.get(order, 0) + counted

    @property
    def p_values(self) -> dict[str, float]:
        expected = np.full(BINS, self.draws / BINS)
        return {name: p_value(chi_square(seen, expected), BINS - 1) for name, seen in self.counts.items()}


class Writers:
    """A thread and another (forked) process that write a lane each, as far as they are allowed to."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self._limits: MutableSequence[int] = context.Array("q", 2, lock=False)
        self._process_end, there = context.Pipe()
        self._process = context.Process(target=paced_writers, args=(self._limits, there), daemon=True)
        self._process.start()
        there.close()  # so that the end of the other process ends the wait

    @contextlib.contextmanager
    def writing(self, made: fastrl.Replay, seed: int) -> Iterator[None]:
        self._limits[:] = [0, 0]
        self._process_end.send((made.handle(), 1, seed))
        assert self._process_end.recv() == "writing"
        with made.writer(0) as writer:
            thread = threading.Thread(target=write_paced, args=(writer, seed, self._limits), daemon=True)
            thread.start()
            try:
                yield
            finally:
                self._limits[:] = [-1, -1]
                thread.join()
                assert self._process_end.recv() == "done"

    def allow(self, ends: list[int]) -> None:
        """Let them go on until ``ends``."""
        self._limits[:] = ends

    def wait(self, made: fastrl.Replay, ends: list[int]) -> None:
        began = time.monotonic()
        while made.boundary() != ends:
            assert time.monotonic() - began < 60, f"{made.boundary()} instead of {ends} after a minute"
            time.sleep(1e-5)

    def close(self) -> None:
        self._process_end.send(None)
        self._process.join(10)
        self._process.kill()

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Weights:
    """What each transition that may be drawn weighs, kept the slow and obvious way."""

    def __init__(self, prioritised: bool) -> None:
        self._prioritised = prioritised
        self._largest = _WEIGHT_UNIT
        self.now: dict[tuple[int, int], int] = {}

    def follow(self, eligible: list[tuple[int, int]]) -> None:
        new = self._largest if self._prioritised else 1
        self.now = {key: self.now.get(key, new) for key in eligible}

    def update(self, index: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> int:
        """How many of them may no longer be drawn."""
        stale = 0
        for key, priority in zip(map(tuple, index.tolist()), priorities.tolist(), strict=True):
            if key not in self.now:
                stale += 1
                continue
            self.now[key] = min(max(round(priority**_ALPHA * _WEIGHT_UNIT), 1), _MOST_WEIGHT)
            self._largest = max(self._largest, self.now[key])
        return stale


def draw_while_written(
    writers: Writers, seed: int, batches: int, prioritised: bool, rows: int = 2000, wrong_by: float = 0.0
) -> Drawn:
    """Draw ``batches`` batches and judge each.

    Args:
        writers: who write meanwhile.
        seed: of what is written and drawn.
        batches: how many.
        prioritised: by priorities that change after every batch, of transitions of three steps; else uniformly.
        rows: of a batch.
        wrong_by: a share by which every other transition is taken to be drawn too often; as a control.
    """
    n_step = 3 if prioritised else 1
    made = small_replay(capacity=2 * _SLOTS, seed=seed, alpha=_ALPHA if prioritised else None)
    lanes = [OracleLane(), OracleLane()]
    for number, lane in enumerate(lanes):
        for name, arguments in islice(scripted(number, seed), (batches + 2) * GUARD_STEPS):
            getattr(lane, name)(*arguments)
    rng = np.random.default_rng(seed)
    weights, result = Weights(prioritised), Drawn()
    old = np.empty((0, 2), np.int64)
    boundary = [GUARD_STEPS, GUARD_STEPS]
    with writers.writing(made, seed):
        writers.allow(boundary)
        writers.wait(made, boundary)
        for number in range(batches):
            eligible = [
                (lane, step)
                for lane, oracle in enumerate(lanes)
                for step in oracle.eligible_steps(boundary[lane], _SLOTS, made.stack, n_step)
            ]
            weights.follow(eligible)
            allowed = [end + GUARD_STEPS for end in boundary]
            writers.allow(allowed)
            index = made.sample(rows, n_step, GAMMA, boundary=boundary).index
            result.steps_meanwhile += sum(made.boundary()) - sum(boundary)
            judge(result, weights.now, index, rng, wrong_by)
            if prioritised:
                # Some that were drawn now and some that were drawn before, which have been overwritten by now.
                chosen = np.unique(np.concatenate([index[:60], old]), axis=0)
                priorities = rng.exponential(size=len(chosen))
                stale = weights.update(chosen, priorities)
                assert made.update_priorities(chosen, priorities) == len(chosen) - stale
                result.updates += len(chosen)
                result.stale += stale
                old = index[:10].copy() if number % 10 == 0 else old
            writers.wait(made, allowed)
            boundary = allowed
    assert made.stats()["race_rejects"] == 0  # as nobody came round: all rows are those that were drawn first
    assert made.stats()["stale_updates"] == result.stale
    if prioritised:
        kept = made._sampler.state()[-1]
        assert kept[kept > 0].tolist() == [weights.now[key] for key in sorted(weights.now)]
    return result


def judge(
    result: Drawn,
    weights: dict[tuple[int, int], int],
    index: npt.NDArray[np.int64],
    rng: np.random.Generator,
    wrong_by: float,
) -> None:
    """Count where in several orders of all that may be drawn the draws lie."""
    keys = np.array(sorted(weights), np.int64)
    weight = np.array([weights[lane, step] for lane, step in keys.tolist()], float)
    weight[::2] *= 1 + wrong_by
    codes, drawn = (array[:, 0] << 40 | array[:, 1] for array in (keys, index))
    at = np.searchsorted(codes, drawn).clip(max=len(codes) - 1)
    known = codes[at] == drawn
    result.outside += int((~known).sum())
    result.draws += int(known.sum())
    at = at[known]
    within = rng.random(len(at))
    places = keys[:, 0] * _SLOTS + keys[:, 1] % _SLOTS
    for name, order in {
        "age": np.lexsort((keys[:, 0], keys[:, 1])),
        "place": np.argsort(places),
        "every other": np.lexsort((keys[:, 1], np.arange(len(keys)) % 2)),
        "weight": np.argsort(weight, kind="stable"),
    }.items():
        before = np.empty(len(keys))
        before[order] = np.cumsum(weight[order]) - weight[order]
        result.count(name, (before[at] + within * weight[at]) / weight.sum())


def figure(results: Sequence[Drawn], kind: str) -> str:
    """One line, after everything was found right."""
    draws, outside = sum(one.draws for one in results), sum(one.outside for one in results)
    p_values = [p for one in results for p in one.p_values.values()]
    all_p = together([one.p_values["age"] for one in results])  # those of one seed are of the same draws
    assert outside == 0, f"{outside} draws of what may not be drawn"
    assert all(one.steps_meanwhile > 0 for one in results), "never raced: nothing was written while batches were drawn"
    for p in (*p_values, all_p):
        assert LEAST_P < p < 1 - LEAST_P, f"{kind} draws are not as they should be: p-values {p_values}"
    steps = sum(one.steps_meanwhile for one in results)
    said = (
        f"{draws:,} draws {kind}, {len(results)} seeds, {steps:,} steps written meanwhile: p-values "
        f"{min(p_values):.2g} to {max(p_values):.3f} (together {all_p:.2g}), {outside} zero-weight draws"
    )
    updates = sum(one.updates for one in results)
    if updates:
        said += f", {sum(one.stale for one in results):,} stale updates dropped of {updates:,}"
    return said
