"""The clock of stages: to whom time is charged, and what the clock itself takes."""

from __future__ import annotations

import pytest

from fastrl.runs import stages
from fastrl.runs.stages import StageClock, stamp_cost_ns


class Time:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns

    def passes(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    stamp_cost_ns()  # with the real clock
    time = Time()
    monkeypatch.setattr(stages, "_now", time)
    return time


def test_each_moment_is_charged_to_the_innermost_stage(time: Time) -> None:
    clock = StageClock()
    time.passes(1)
    with clock("learn"):
        time.passes(2)
        for _ in range(2):
            with clock("sample"):
                time.passes(4)
        time.passes(8)
    with clock("act"):
        time.passes(1)

    times = clock.take()

    assert times.wall_s == 20
    assert times.seconds == {"learn": 10, "sample": 8, "act": 1}
    assert times.counts == {"learn": 1, "sample": 2, "act": 1}
    assert times.shares == pytest.approx({"learn": 0.5, "sample": 0.4, "act": 0.05, "other": 0.05})


def test_a_stage_inside_itself(time: Time) -> None:
    clock = StageClock()
    with clock("act"), clock("act"):
        time.passes(8)

    assert clock.take().seconds == {"act": 8}


def test_an_interval_that_ends_within_a_stage_is_split_there(time: Time) -> None:
    clock = StageClock()
    with clock("learn"):
        time.passes(1)
        first = clock.take()
        time.passes(2)
    second = clock.take()

    assert (first.seconds, first.counts) == ({"learn": 1}, {"learn": 1})
    assert (second.seconds, second.counts) == ({"learn": 2}, {"learn": 0})


def test_a_stage_that_fails_is_charged_and_left(time: Time) -> None:
    clock = StageClock()

    def learn() -> None:
        with clock("learn"):
            time.passes(1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        learn()
    time.passes(3)

    assert clock.take().shares == {"learn": 0.25, "other": 0.75}


def test_nothing_yet(time: Time) -> None:
    times = StageClock().take()

    assert (times.shares, times.own_share) == ({}, 0)


@pytest.mark.alone
def test_a_stamp_is_cheap_and_the_clock_knows_its_own_share(time: Time) -> None:
    clock = StageClock()
    for _ in range(100):
        with clock("act"):
            time.passes(0.001)

    assert clock.take().own_share == pytest.approx(200 * stamp_cost_ns() / 1e8)
    assert stamp_cost_ns() < 5000  # under 1 us where nothing else runs; 250 ns on the machine it was written on
