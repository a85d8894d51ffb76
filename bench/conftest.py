"""What every benchmark shares: collected only by `pytest --benchmark-only`, one table at the end."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contest import Contest, table

import fastrl  # before torch, as in a training: it says how long torch's idle threads watch for work
from fastrl.engine.budget import usable_cores

# What figures depend on, ours and the peers'.
_PACKAGES = (
    "ale-py", "cpprb", "envpool", "gymnasium", "mujoco", "numpy", "stable-baselines3", "tianshou", "torch"
)  # fmt: skip
_OF_THE_WIDE_TABLE = ("--benchmark-columns", "--benchmark-verbose", "--benchmark-quiet")

_contests: list[Contest] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="benchmarks: fewer games and rounds, to see that they work")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Plain `pytest` runs no benchmark."""
    return None if config.getoption("--benchmark-only", default=False) else True


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Leave out pytest-benchmark's own table: it is twice as wide as a screen, and its times include set-up."""
    asked_for = any(given.startswith(_OF_THE_WIDE_TABLE) for given in config.invocation_params.args)
    if config.getoption("--benchmark-only", default=False) and not asked_for:
        config.option.benchmark_quiet = True


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["usable_cores"] = usable_cores()
    machine_info["versions"] = {
        "fastrl": fastrl.__version__,
        **{name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any) -> Iterator[None]:
    """Last of all: also below the list of what was skipped."""
    yield
    if _contests:
        terminalreporter.section("ours beside the peers and the limit")
        terminalreporter.write_line(table(_contests))
