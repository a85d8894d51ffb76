"""The benchmarks' contests and the table at their end."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
from contest import Contest, in_threads, table


class Benchmark:
    """What a contest needs of pytest-benchmark's fixture."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}

    def pedantic(self, task: Callable[[], Any], setup: Callable[[], Any], rounds: int, warmup_rounds: int) -> None:
        for _ in range(rounds + warmup_rounds):
            setup()
            task()


def takes(seconds: float) -> Callable[[], float]:
    return lambda: seconds


def absent() -> Callable[[], float]:
    raise ImportError("no such module")


def failing() -> Callable[[], float]:
    def run() -> float:
        raise RuntimeError("cannot run")

    return run


def played(title: str = "a title that is rather long for its column, 2 threads") -> Contest:
    made = Contest(Benchmark(), title, "steps/s", 100.0, limit="mj_step loop")
    peers = made.peers(
        {"Gymnasium async": lambda: takes(4.0), "EnvPool": lambda: takes(2.0), "cpprb": absent, "SB3": failing}
    )
    made.run(takes(1.0), {"mj_step loop": takes(0.8), "in turn": takes(0.9), **peers}, rounds=3)
    return made


def test_the_table_has_peers_the_limit_and_references_in_a_screens_width() -> None:
    lines = table([played(), played("another")]).splitlines()
    per_calibration, limit = lines[1].split()[8], ["mj_step loop", "125", "0.80"]
    first = [line.split("  ") for line in lines]

    assert max(len(line) for line in lines) <= 120
    assert [[cell.strip() for cell in row if cell.strip()] for row in first[:4]] == [
        ["fastrl", "spread", "per cal.", "beside", "speed", "ratio", "limit", "share"],
        ["a title that is rather long", "100", "0%", per_calibration, "EnvPool", "50", "2.00", *limit],
        ["for its column, 2 threads", "Gymnasium async", "25", "4.00"],
        ["[steps/s]", "(in turn)", "111", "0.90"],
    ]
    assert "EnvPool: ran in 2 of the 2 contests that know it, geometric mean of the ratios 2.00" in lines
    assert "cpprb: ran in 0 of the 2 contests that know it" in lines
    assert "not run: cpprb: ImportError: no such module" in lines
    assert "not run: SB3: RuntimeError: cannot run" in lines
    assert not any(line.startswith("in turn: ran") for line in lines)


def test_what_is_kept_says_who_ran_and_what_travels() -> None:
    made = played()
    kept = made._benchmark.extra_info

    assert kept["peers"] == {
        "Gymnasium async": None,
        "EnvPool": None,
        "cpprb": "ImportError: no such module",
        "SB3": "RuntimeError: cannot run",
    }
    assert kept["references"] == ["in turn"]
    assert kept["per_calibration"] == pytest.approx(100 * statistics.median(made.calibration_seconds))
    assert "SB3" not in kept["speed"]


def test_a_limit_that_fails_and_a_peer_of_another_spelling_are_refused() -> None:
    made = Contest(Benchmark(), "task", "steps/s", 1.0, limit="limit")
    with pytest.raises(RuntimeError, match="cannot run"):
        made.run(takes(1.0), {"limit": failing()}, rounds=1)
    with pytest.raises(ValueError, match=r"peer 'sb3' is none of ALE vector, .*SB3.*; spell it so"):
        made.peers({"sb3": absent})


def test_one_thread_is_one() -> None:
    assert [in_threads(n) for n in (1, 2)] == ["1 thread", "2 threads"]
