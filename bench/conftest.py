"""What every benchmark shares: collected only by `pytest --benchmark-only`, one table at the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from contest import Contest, table

import fastrl  # noqa: F401  before torch, as in a training: it says how long torch's idle threads watch for work

_contests: list[Contest] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="benchmarks: fewer games and rounds, to see that they work")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Plain `pytest` runs no benchmark."""
    return None if config.getoption("--benchmark-only", default=False) else True


def pytest_report_header() -> str:
    return f"load average at start {os.getloadavg()[0]:.2f} (benchmarks want a quiet machine)"


@pytest.fixture
def quick(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--quick"))


@pytest.fixture
def contest(benchmark: Any) -> Any:
    """Start a contest whose result goes into the benchmark's JSON and into the table at the end."""

    def start(*args: Any, **more: Any) -> Contest:
        made = Contest(benchmark, *args, **more)
        _contests.append(made)
        return made

    return start


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _contests:
        terminalreporter.section("ours beside the peers and the limit")
        terminalreporter.write_line(table(_contests))
