"""That torch's idle threads are told to sleep, and that nobody's own choice is overruled."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOW = "print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
OURS = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}


@pytest.mark.parametrize(
    ("imports", "environment", "expected"),
    [
        ("fastrl", {}, "10000 None"),
        ("torch, fastrl", {}, "None None"),  # too late for torch
        ("fastrl", {"GOMP_SPINCOUNT": "7"}, "7 None"),
        ("fastrl", {"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_idle_threads_are_told_to_sleep(imports: str, environment: dict[str, str], expected: str) -> None:
    others = {name: value for name, value in os.environ.items() if name not in OURS}
    command = [sys.executable, "-c", f"import os, {imports}; {SHOW}"]
    said = subprocess.run(command, env=others | environment, capture_output=True, text=True, check=True).stdout
    assert said.strip() == expected
