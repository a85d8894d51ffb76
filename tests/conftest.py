"""What every test run shares: a header with the versions that matter, and none of the benchmarks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from turns import Turns

import fastrl

# By the environment, so that all processes of `pytest -n 2` have the same.
SEED = int(os.environ.setdefault("FASTRL_TEST_SEED", str(time.time_ns() % 1_000_000)))
_TURNS = Turns() if "PYTEST_XDIST_WORKER" in os.environ else None


def pytest_configure(config: pytest.Config) -> None:
    """Tests of Ctrl-C send SIGINT, which a shell has ignored in what it starts in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "alone: measures time, so that no other test runs meanwhile")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`pytest -n 2`: whole files to each process, since their tests share trained runs and the like."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # it puts files of few tests last, which are among the longest
    return LoadFileScheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Wait for the test's turn."""
    if _TURNS is None:
        return (yield)
    with _TURNS.one(alone=item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`pytest --benchmark-only` runs bench/ alone."""
    return True if config.getoption("--benchmark-only", default=False) else None


def pytest_report_header() -> list[str]:
    info = fastrl.build_info()
    packages = ("ale-py", "gymnasium", "numpy", "opencv-python-headless", "stable-baselines3", "pybind11")
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    return [
        f"fastrl {info['version']}: {info['compiler']}, {info['build_type']}, pixel path {info['cpu_path']}",
        f"FASTRL_TEST_SEED={SEED}",
        f"{', '.join(versions)}, {len(os.sched_getaffinity(0))} cores, {platform.machine()}",
    ]


@pytest.fixture
def digest_at_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends has the digest of all that it was."""
    from fastrl.runs.session import Session

    monkeypatch.setattr(Session, "digest_at_end", True)


@pytest.fixture(scope="session")
def session_seed() -> int:
    """Varies from run to run; FASTRL_TEST_SEED repeats one. Printed above the tests, and of those that fail."""
    return SEED


@pytest.fixture(autouse=True)
def _say_the_seed() -> None:
    print(f"FASTRL_TEST_SEED={SEED}")
