"""The scripts for a machine with a GPU, where there is none: the CPU plays its part, and programs are stubs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "bench" / "gpu"
PATIENCE_S = 220  # of a machine that others use too


def run(script: str, *arguments: str, path: Path | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    """A script of bench/gpu; modules in ``path`` come before the tree's."""
    places = [str(place) for place in (path, ROOT, ROOT / "bench") if place is not None]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), **more}
    command = ["bash" if script.endswith(".sh") else sys.executable, str(SCRIPTS / script), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=PATIENCE_S, cwd=path or ROOT
    )


# ---- learn.py

STUB = """
import os, signal, sys, time
from pathlib import Path

given = sys.argv[1:]
if "--resume-without-replay" in given:
    run = Path(given[given.index("--resume-without-replay") + 1])
    assert (run / "config.json").exists(), "nothing to go on with"
else:
    run = Path(given[given.index("--runs") + 1]) / given[given.index("--name") + 1]
    (run / "checkpoints").mkdir(parents=True)
what = os.environ["STUB"]
if what.startswith("fails"):
    sys.exit(3)
if what.startswith("stubborn"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
(run / "config.json").write_text('{"config": {"env": "Stub-v0"}}')
(run / "metrics.csv").write_text(f"of {what}")
if not what.endswith("nothing"):
    before = [int(path.stem[5:]) for path in (run / "checkpoints").glob("*.json")]
    steps = max(before, default=0) + 100
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    (run / "checkpoints" / f"ckpt-{steps:012d}.json").write_text("{}")
    (run / "checkpoints" / f"ckpt-{steps:012d}-ab.safetensors").write_bytes(bytes(range(250)) * 130_000)
if what.startswith("stubborn"):
    time.sleep(100)
"""


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A folder whose fastrl.dqn does what the environment says, beside an empty folder `out`."""
    (tmp_path / "fastrl").mkdir()
    (tmp_path / "fastrl" / "__init__.py").touch()
    (tmp_path / "fastrl" / "dqn.py").write_text(STUB)
    (tmp_path / "out").mkdir()
    return tmp_path


def learn(place: Path, what: str, *more: str, minutes: str = "2") -> subprocess.CompletedProcess[str]:
    folders = ("--out", str(place / "out"), "--runs", str(place / "runs"))
    return run("learn.py", "--minutes", minutes, *folders, "--device", "cpu", *more, path=place, STUB=what)


def left(place: Path) -> list[str]:
    return sorted(path.name for path in (place / "out").iterdir())


def test_pieces_go_on_from_each_other_in_files_that_are_small_enough(stub: Path) -> None:
    first = learn(stub, "works")
    assert first.returncode == 0, first.stderr
    names = ["ckpt-000000000100-ab.safetensors.00", "ckpt-000000000100-ab.safetensors.01"]
    names += ["ckpt-000000000100-ab.safetensors.02", "ckpt-000000000100.json", "config.json", "metrics.csv"]
    assert left(stub) == names
    assert all(path.stat().st_size < 16_000_000 for path in (stub / "out").iterdir())
    # The second one on the same machine, where the first one's run still lies.
    second = learn(stub, "works")
    assert second.returncode == 0, second.stderr
    assert left(stub) == [name.replace("00100", "00200") for name in names]
    (stub / "out" / "ckpt-000000000200-ab.safetensors.01").unlink()
    refused = learn(stub, "works")
    assert refused.returncode == 1
    assert "lacks a part of ckpt-000000000200-ab.safetensors" in refused.stderr


@pytest.mark.parametrize("what", ["fails", "nothing"])
def test_what_an_earlier_run_left_is_not_told_as_this_ones(stub: Path, what: str) -> None:
    assert learn(stub, "works").returncode == 0
    for path in (stub / "out").iterdir():
        path.unlink()
    failed = learn(stub, what)  # the same name, with the earlier run still there
    assert failed.returncode == 1
    assert "left no new checkpoint" in failed.stdout
    assert left(stub) == []
    assert ("failed with exit code 3" if what == "fails" else "nothing was learned") in failed.stderr


def test_a_piece_that_fails_leaves_what_the_one_before_brought(stub: Path) -> None:
    assert learn(stub, "works").returncode == 0
    before = {path.name: path.read_bytes() for path in (stub / "out").iterdir()}
    failed = learn(stub, "fails")
    assert (failed.returncode, "stays as it was, at step 100" in failed.stdout) == (1, True)
    assert {path.name: path.read_bytes() for path in (stub / "out").iterdir()} == before


def test_a_trainer_that_does_not_stop_is_killed_and_its_checkpoint_copied(stub: Path) -> None:
    killed = learn(stub, "stubborn", "--to-stop-s", "1", minutes="0.2")
    assert killed.returncode == 1
    assert "did not stop within 1 s and was killed" in killed.stderr
    assert "ckpt-000000000100.json" in left(stub)


@pytest.mark.parametrize(
    ("more", "minutes", "said"),
    [
        ((), "0.5", r"--minutes: 0\.5 leave -10 s to learn in, since 40 s are kept .* give at least 0\.83"),
        ((), "nan", "--minutes: nan leave"),
        (("--env", "Other-v0"), "1", "--env: Other-v0 is not Stub-v0, which the run in .* learns; leave --env out"),
    ],
)
def test_what_cannot_be_done_is_refused(stub: Path, more: tuple[str, ...], minutes: str, said: str) -> None:
    (stub / "out" / "config.json").write_text('{"config": {"env": "Stub-v0"}}')
    refused = learn(stub, "works", *more, minutes=minutes)
    assert refused.returncode == 1
    assert re.search(said, refused.stderr), refused.stderr
    assert left(stub) == ["config.json"]


def test_a_training_in_pieces(tmp_path: Path) -> None:
    """By the trainer itself."""
    (tmp_path / "out").mkdir()
    small = ("--hidden-units", "8", "--warm-up-steps", "200", "--log-every-steps", "200", "--evaluate-every-steps", "0")
    first = learn(tmp_path, "", "--env", "CartPole-v1", "--steps", "600", *small, minutes="3")
    assert first.returncode == 0, first.stdout + first.stderr
    second = learn(tmp_path, "", "--steps", "800", "--to-stop-s", "30", minutes="3")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "ckpt-000000000800.json" in left(tmp_path)
    rows = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
    assert [int(row.split(",")[1]) for row in rows[1:]] == [200, 400, 600, 800]


# ---- measure.py


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for place in (ROOT / "bench", SCRIPTS):
        monkeypatch.syspath_prepend(str(place))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    import measure

    return measure


def test_checks_and_rates_come_to_one_table(tmp_path: Path) -> None:
    names = ("copies and mirror", "acting", "groups of n-step Q", "DDPG", "games alone", "update alone, fp32")
    only = [word for name in (*names, "DQN, 16 games", "draw by copies, update") for word in ("--only", name)]
    done = run("measure.py", "--device", "cpu", "--minutes", "3", "--no-peers", "--out", str(tmp_path / "new"), *only)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "new" / "table.txt").read_text()
    assert re.search(r"^case +ours +SB3 +ratio +limit +share +unit$", table, re.MULTILINE)
    assert re.search(r"^DQN, 16 games +[\d.,e+]+ +- +- +[\d.,e+]+ +\d+% +steps/s$", table, re.MULTILINE), table
    assert "checks passed: 4 of 4" in table
    assert table.strip() in done.stdout
    found = json.loads((tmp_path / "new" / "gpu.json").read_text())
    assert set(found["rates"]) >= {"games alone, 32", "DQN, 16 games", "draw by copies, update", "acting, 16 games"}
    assert all(rate > 0 for rate in found["rates"].values())
    assert sum(found["shares"]["DQN, 16 games"].values()) == pytest.approx(1, abs=0.2)


def told_of(measure: ModuleType, out: Path, minutes: float, cases: list[Any], checks: dict[str, Any]) -> Any:
    found = measure.Measurement(out, "cpu", minutes)
    found.check(list(checks))
    found.time(cases, peers=True)
    found.tell(cases)
    return found


def test_only_peers_may_be_missing(measure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(turn: Any) -> float:
        raise ImportError("no such thing")

    def not_there(turn: Any) -> float:
        raise measure.NotThere("cv2 is not there")

    def wrong(device: str) -> str:
        raise AssertionError("3 of 4 differ")

    monkeypatch.setattr(measure, "PEERS", {"them": not_there})
    monkeypatch.setattr(measure, "CHECKS", {"wrong": wrong, "right": lambda device: "fine"})
    cases = [
        measure.Case("ours", "steps/s", lambda turn: 200.0, "them", lambda rates: 400.0),
        measure.Case("broken", "steps/s", lacks),
    ]
    found = told_of(measure, tmp_path, 1, cases, measure.CHECKS)
    assert found.failed == ["wrong", "broken"]
    told = (tmp_path / "table.txt").read_text()
    assert "SB3: them: not run: cv2 is not there" in told
    assert "broken: FAILED: ImportError: no such thing" in told
    assert "wrong: FAILED: AssertionError: 3 of 4 differ" in told
    assert re.search(r"^ours +200 +- +- +400 +50% +steps/s$", told, re.MULTILINE)
    assert "FAILED: wrong, broken" in told


def test_time_is_shared_out_and_what_is_late_is_left_out(
    measure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "CHECKS", {})
    given: list[float] = []

    def takes_long(turn: Any) -> float:
        given.append(turn.left_s)
        time.sleep(max(0.0, found_left(turn)))
        return 1.0

    def found_left(turn: Any) -> float:
        return float(turn.left_s) if len(given) < 2 else 3.0

    cases = [measure.Case(f"case {at}", "calls/s", takes_long) for at in range(4)]
    began = time.monotonic()
    found = told_of(measure, tmp_path, 6 / 60, cases, {})
    assert time.monotonic() - began < 7
    assert given[0] == pytest.approx(1, abs=0.3)  # a quarter of four seconds
    assert found.said["case 3"] == "left out: the time was over"
    assert not found.failed


def test_a_case_that_hangs_ends_the_script_in_time(tmp_path: Path) -> None:
    code = f"""
import sys, time
sys.path[:0] = [{str(SCRIPTS)!r}]
import measure
measure.CASES[:] = [measure.Case("stuck", "steps/s", lambda turn: time.sleep(100))]
measure.CHECKS.clear()
sys.argv = ["measure.py", "--device", "cpu", "--minutes", "0.1", "--out", {str(tmp_path)!r}]
measure.main()
"""
    (tmp_path / "stuck.py").write_text(code)
    done = run(str(tmp_path / "stuck.py"))
    assert done.returncode == 1
    assert "FAILED: stuck (did not end in time)" in (tmp_path / "table.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "nan"], r"--minutes nan is outside \[0\.1, 60\]; give 8"),
        (["--minutes", "0"], r"--minutes 0 is outside"),
        (["--only", "tea"], "--only 'tea' is in no name of a check or a case; known: captured updates"),
        (["--device", "cuda"], "torch finds no GPU"),
    ],
)
def test_arguments_are_refused(
    measure: ModuleType, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["measure.py", "--out", str(tmp_path), "--device", "cpu", *arguments])
    with pytest.raises(SystemExit, match=said):
        measure.main()
    assert not list(tmp_path.iterdir())


# ---- run.sh

PYTHON = """#!/bin/bash
case "$*" in
  *needs.py) exit 0 ;;
  *" pip install "*) echo "line of pip"; echo "CMake Error: no compiler"; exit "${PIP_CODE:-0}" ;;
esac
echo "$PWD $*"
while [ $# -gt 1 ]; do
  if [ "$1" = --out ]; then echo found > "$2/result"; fi
  shift
done
[ -z "${SLEEPS:-}" ] || exec sleep 100
exit "${CODE:-0}"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder to call run.sh from, with a python that builds nothing and measures nothing."""
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "tmp").mkdir()
    return tmp_path


def run_sh(place: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    fixed = {"PYTHON": "./python", "TMPDIR": str(place / "tmp")}
    return run("run.sh", "--wheels", str(place / "none"), *arguments, path=place, **fixed, **more)


@pytest.mark.parametrize("learning", [(), ("--learn", "3")])
@pytest.mark.parametrize("absolute", [True, False])
def test_results_lie_where_they_are_wanted(place: Path, absolute: bool, learning: tuple[str, ...]) -> None:
    out = str(place / "out") if absolute else "out"
    done = run_sh(place, "--out", out, *learning, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert (place / "out" / "result").read_text() == "found\n"
    said = done.stdout.splitlines()[-1]
    script = "learn.py --minutes 3" if learning else r"measure.py --minutes [78]\.\d"
    assert re.fullmatch(rf"{SCRIPTS} {script} --out {place / 'out'} --device cpu", said)
    assert not list((place / "tmp").iterdir()), "the folder of the run was left behind"


def test_what_failed_is_named_with_its_log(place: Path) -> None:
    failed = run_sh(place, "--out", "out", PIP_CODE="7")
    assert failed.returncode == 7
    assert f"building failed with exit code 7; the whole log is {place / 'out' / 'setup.log'}" in failed.stderr
    assert "CMake Error: no compiler" in failed.stderr
    assert "line of pip" in (place / "out" / "setup.log").read_text()
    assert not (place / "out" / "result").exists()
    code = run_sh(place, "--out", "out", CODE="5")
    assert (code.returncode, "measure.py ended with exit code 5" in code.stderr) == (5, True)
    assert not list((place / "tmp").iterdir())


def test_a_signal_reaches_what_runs(place: Path) -> None:
    environment = {**os.environ, "PYTHON": "./python", "TMPDIR": str(place / "tmp"), "SLEEPS": "1"}
    command = ["bash", str(SCRIPTS / "run.sh"), "--wheels", "none", "--out", "out"]
    began = time.monotonic()
    with subprocess.Popen(command, cwd=place, env=environment, stdout=subprocess.DEVNULL) as process:
        while not (place / "out" / "result").exists():
            assert time.monotonic() - began < 30
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    assert not list((place / "tmp").iterdir())


def test_an_old_cmake_is_named(place: Path, tmp_path: Path) -> None:
    (tmp_path / "cmake").write_text("#!/bin/sh\necho cmake version 3.22.1\n")
    (tmp_path / "cmake").chmod(0o755)
    told = run("needs.py", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert told.returncode == 1
    assert f"cmake at {tmp_path / 'cmake'} is 3.22, and at least 3.25 is needed; put a wheel of cmake" in told.stdout
