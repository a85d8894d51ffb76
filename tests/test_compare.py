"""Comparing two benchmark runs: noise is no change, a slower machine is none, ten percent are one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import compare
import numpy as np
import pytest


def contest(seconds: float, calibration_s: float, seed: int, rounds: int = 9) -> dict[str, Any]:
    """Rounds of a machine whose speed drifts, for the work and the calibration alike."""
    rng = np.random.default_rng(seed)
    drift = np.exp(rng.normal(0, 0.2, rounds))
    noise = np.exp(rng.normal(0, 0.01, rounds))
    return {
        "seconds": (seconds * drift * noise).tolist(),
        "calibration_seconds": (calibration_s * drift).tolist(),
        "work_per_round": 1000,
        "speed": {"fastrl": 1 / seconds},
    }


def kept(path: Path, contests: dict[str, Any]) -> str:
    path.write_text(
        json.dumps({"machine": {"cpu": "made up"}, "datetime": "2026-01-01T00:00", "commit": "0", "contests": contests})
    )
    return str(path)


def test_what_got_slower_is_told_from_noise_and_from_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {f"task {i}": contest(0.1, 0.002, seed=i) for i in range(30)}
    after = {
        **{f"task {i}": contest(0.2, 0.004, seed=100 + i) for i in range(28)},  # a machine of half the speed
        "task 28": contest(0.22, 0.004, seed=200),
        "task 29": contest(0.18, 0.004, seed=201),
    }
    code = compare.main([kept(tmp_path / "a.json", before), kept(tmp_path / "b.json", after)])
    said = capsys.readouterr().out

    assert code == 1
    assert said.splitlines()[-2:] == ["30 compared, 1 slower beyond noise", "  task 28"]
    assert [line.split("  ")[0] for line in said.splitlines() if line.endswith("faster")] == ["task 29"]
    assert compare.main([str(tmp_path / "a.json")] * 2) == 0


def test_what_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = {"speed": {"fastrl": 1.0}}
    before = {"gone": contest(1, 1, 0), "old": old, "short": contest(1, 1, 0, rounds=1)}
    after = {"new": contest(1, 1, 0), "old": contest(1, 1, 0), "short": contest(1, 1, 0)}
    assert compare.main([kept(tmp_path / "a.json", before), kept(tmp_path / "b.json", after)]) == 0
    said = capsys.readouterr().out

    assert "gone: only in BEFORE" in said
    assert "new: only in AFTER" in said
    assert "old: one of them is from before calibrations" in said
    assert "short: fewer than 3 rounds" in said
    assert "0 compared" in said


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"contests": {}}', '{"benchmarks": []}', None])
def test_files_of_another_kind_are_refused(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)

    assert compare.main([str(path), str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_what_pytest_benchmark_writes_is_read(tmp_path: Path) -> None:
    written = {
        "machine_info": {"processor": "", "machine": "x86_64", "cpu": {"brand_raw": "made up"}},
        "commit_info": {"id": "0123456789abcdef"},
        "datetime": "2026-01-01T00:00",
        "benchmarks": [
            {"name": "task", "extra_info": contest(1, 1, 0), "stats": {"rounds": 9}},
            {"name": "of another plugin", "extra_info": {}, "stats": {"rounds": 9}},
        ],
    }
    path = tmp_path / "all.json"
    path.write_text(json.dumps(written))
    found = compare.read(path)

    assert list(found["contests"]) == ["task"]
    assert found["commit"] == "0123456789ab"
    assert compare.main([str(path), str(path)]) == 0
