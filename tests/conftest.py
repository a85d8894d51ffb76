"""What every test run shares: a header with the versions that matter, and none of the benchmarks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import signal
import time
from pathlib import Path

import pytest
from early import begun

import fastrl

__all__ = ["begun"]  # a fixture of all tests

SEED = int(os.environ.get("FASTRL_TEST_SEED", time.time_ns() % 1_000_000))


def pytest_configure() -> None:
    """Tests of Ctrl-C send SIGINT, which a shell has ignored in what it starts in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
