"""Comparing benchmark runs: noise is no change, a slower machine is none, half as slow again is one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import compare
import keep_run
import kept_results
import numpy as np
import pytest


def contest(
    seconds: float, calibration_s: float, seed: int, rounds: int = 9, noise_share: float = 0.01, run_share: float = 0.0
) -> dict[str, Any]:
    """Rounds of a machine whose speed drifts, for the work and the calibration alike.

    Beside that each round has noise of its own, and the whole run has.
    """
    rng = np.random.default_rng(seed)
    drift = np.exp(rng.normal(0, 0.2, rounds))
    noise = np.exp(rng.normal(0, noise_share, rounds) + rng.normal(0, run_share))
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
        "task 28": contest(0.3, 0.004, seed=200),
        "task 29": contest(0.13, 0.004, seed=201),
    }
    code = compare.main([kept(tmp_path / "a.json", before), kept(tmp_path / "b.json", after)])
    said = capsys.readouterr().out

    assert code == 1
    assert said.splitlines()[-2:] == ["30 compared, 1 slower beyond noise", "  task 28"]
    assert [line.split("  ")[0] for line in said.splitlines() if line.endswith("faster")] == ["task 29"]
    assert compare.main([str(tmp_path / "a.json")] * 2) == 0


def verdicts(times: int, slower: float, rounds: int, runs: int = 1, run_share: float = 0.06) -> Counter[str]:
    """Of so many comparisons under noise of 10% in rounds and 6% in runs."""
    found: Counter[str] = Counter()
    for seed in range(times):
        sides = [
            [
                contest(factor, 0.002, 10_000 * i + 100 * seed + run, rounds, noise_share=0.1, run_share=run_share)
                for run in range(runs)
            ]
            for i, factor in enumerate((1.0, slower))
        ]
        found[compare.change("task", *sides).verdict] += 1
    return found


@pytest.mark.parametrize("rounds", [5, 7, 9])
def test_equal_code_is_hardly_ever_called_slower(rounds: int) -> None:
    assert verdicts(200, 1.0, rounds)["SLOWER"] <= 2
    assert verdicts(200, 1.0, rounds, run_share=0.0)["SLOWER"] == 0


def test_half_as_slow_again_is_found() -> None:
    assert verdicts(100, 1.5, rounds=9, run_share=0.0)["SLOWER"] >= 90
    assert verdicts(100, 1.5, rounds=7, runs=3)["SLOWER"] >= 98


def test_runs_of_one_side_say_themselves_how_far_they_scatter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def side(name: str, seconds: list[float]) -> str:
        contests = ({"task": contest(s, 0.002, i)} for i, s in enumerate(seconds))
        return ",".join(kept(tmp_path / f"{name}{i}.json", one) for i, one in enumerate(contests))

    steady, erratic = side("steady", [1.0, 1.01, 0.99]), side("erratic", [0.6, 1.0, 1.6])
    slower, erratic_slower = side("slower", [1.3, 1.31, 1.29]), side("too", [0.8, 1.3, 2.1])
    assert compare.main([steady, slower]) == 1
    assert compare.main([erratic, erratic_slower]) == 0
    assert compare.main([steady + "," + str(tmp_path / "steady0.json"), slower]) == 2
    assert "is there twice" in capsys.readouterr().err


def test_two_kept_runs_of_one_commit_are_no_change(capsys: pytest.CaptureFixture[str]) -> None:
    results = Path(compare.__file__).parent / "results"
    pair = [str(results / f"2026-11-22-replay{which}.json") for which in ("", "-again")]
    for files in (pair, pair[::-1]):
        assert compare.main(files) == 0
        assert "5 compared, 0 slower beyond noise" in capsys.readouterr().out


def test_what_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = {"speed": {"fastrl": 1.0}}
    before = {name: contest(1, 1, 0) for name in ("gone", "short", "zero", "text", "uneven")} | {"old": old}
    after = {
        "new": contest(1, 1, 0),
        "old": contest(1, 1, 0),
        "short": contest(1, 1, 0, rounds=4),
        "zero": {**contest(1, 1, 0), "seconds": [0.0] * 9},
        "text": {**contest(1, 1, 0), "seconds": ["a"] * 9},
        "uneven": {**contest(1, 1, 0), "seconds": [1.0] * 8},
    }
    assert compare.main([kept(tmp_path / "a.json", before), kept(tmp_path / "b.json", after)]) == 2
    said = capsys.readouterr()

    assert "gone: only in BEFORE" in said.out
    assert "new: only in AFTER" in said.out
    assert "old: one of them is from before calibrations" in said.out
    assert "short: too few rounds: 4 in one run, 5 or more" in said.out
    assert "zero: its seconds, calibrations or work are not all above 0" in said.out
    assert "text: its seconds, calibrations or work are no numbers" in said.out
    assert "uneven: 8 seconds and 9 calibrations" in said.out
    assert "0 compared: give two runs that share contests" in said.err


def test_help_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (compare.main, kept_results.main, keep_run.main):
        with pytest.raises(SystemExit, match="0"):
            command(["-h"])
        assert "usage: bench/" in capsys.readouterr().out


DAMAGED = {
    "machine": '{"machine": 1, "datetime": 2, "commit": 3, "contests": {}}',
    "contest": '{"machine": {}, "datetime": "", "commit": "", "contests": {"task": 1}}',
    "benchmarks": '{"machine_info": {}, "datetime": "", "commit_info": {}, "benchmarks": 1}',
    "benchmark": '{"machine_info": {}, "datetime": "", "commit_info": {}, "benchmarks": [1]}',
    "extra_info": '{"machine_info": {}, "datetime": "", "commit_info": {}, '
    '"benchmarks": [{"name": "a", "extra_info": 1}]}',
}


@pytest.mark.parametrize(
    "content", ["", "[]", '{"a": 1}', '{"contests": {}}', '{"benchmarks": []}', None, *DAMAGED.values()]
)
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
        "machine_info": {
            "processor": "",
            "machine": "x86_64",
            "cpu": {"brand_raw": "made up"},
            "usable_cores": 2,
            "versions": {"torch": "2.6.0", "envpool": None},
        },
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2026-01-01T00:00",
        "benchmarks": [
            {
                "name": "task",
                "extra_info": {**contest(1, 1, 0), "peers": {"SB3": None, "EnvPool": "ImportError: none"}},
                "stats": {"rounds": 9},
            },
            {"name": "of another plugin", "stats": {"rounds": 9}},
        ],
    }
    path = tmp_path / "all.json"
    path.write_text(json.dumps(written))
    found = compare.read(path)

    assert list(found["contests"]) == ["task"]
    assert found["commit"] == "0123456789ab"
    assert compare.main([str(path), str(path)]) == 0
    assert found["machine"]["usable_cores"] == 2
    assert found["versions"] == {"torch": "2.6.0", "envpool": None}
    assert found["dirty"] is True
    assert found["peers"] == {"EnvPool": {"ran": 0, "contests": 1}, "SB3": {"ran": 1, "contests": 1}}

    assert kept_results.main([str(path), str(tmp_path / "kept.json")]) == 0
    assert compare.read(tmp_path / "kept.json") == found
    assert kept_results.main([str(path), str(tmp_path / "no folder" / "kept.json")]) == 2


def test_a_run_is_kept_once_and_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text("{")
    (tmp_path / "run").mkdir()
    assert keep_run.main([str(tmp_path / "none"), str(tmp_path / "to")]) == 2
    assert "none is not a directory" in capsys.readouterr().err
    description = {"format": 1, "algorithm": "dqn", "config": {"runs": "/a/b"}, "versions": {}, "machine": {}}
    (tmp_path / "run" / "config.json").write_text(json.dumps({**description, "finished": True}))
    assert keep_run.main([str(tmp_path / "run"), str(tmp_path / "to"), str(evaluation)]) == 2
    assert "evaluation.json: cannot be read" in capsys.readouterr().err
    assert keep_run.main([str(tmp_path / "run"), str(tmp_path / "to")]) == 2  # it has no metrics.csv
    assert not (tmp_path / "to" / "run").exists()
    (tmp_path / "run" / "metrics.csv").write_text("steps\n1\n2\n")
    assert keep_run.main([str(tmp_path / "run"), str(tmp_path / "to")]) == 0
    assert json.loads((tmp_path / "to" / "run" / "config.json").read_text())["config"] == {"runs": "b"}
    assert keep_run.main([str(tmp_path / "run"), str(tmp_path / "to")]) == 2
    assert "exists already" in capsys.readouterr().err
