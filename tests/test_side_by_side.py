"""One run for each of several seeds: what each is told, and that none is left when all are to end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastrl.runs import side_by_side
from fastrl.runs.side_by_side import run_seeds


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ([], ["--threads", "2", "--torch-threads", "2"]),
        (["--torch-threads", "3"], ["--torch-threads", "3", "--threads", "2"]),
        (["--torch_threads=3"], ["--torch_threads=3", "--threads", "2"]),
        (["--threads=1", "--torch_threads", "3"], ["--threads=1", "--torch_threads", "3"]),
    ],
)
def test_a_run_takes_its_part_of_the_cores_unless_told_otherwise_in_either_spelling(
    said: list[str], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def started(command: list[str], **_: Any) -> Any:
        commands.append(command[5:])
        return SimpleNamespace(poll=lambda: 0, returncode=0, stdout=None)

    monkeypatch.setattr(side_by_side, "usable_cores", lambda: 4)
    monkeypatch.setattr(side_by_side, "subprocess", SimpleNamespace(Popen=started, PIPE=None, DEVNULL=None))

    assert run_seeds("dqn", ["--seeds", "0,7", *said], "0,7", "pair") == 0
    assert commands == [[*told, "--seed", seed, "--name", f"pair-s{seed}"] for seed in ("0", "7")]


def of(folder: Path) -> list[int]:
    """The processes that train there."""
    found = subprocess.run(["pgrep", "-f", f"side_by_side .*{folder}"], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def wait_for(what: Any, seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


# Whoever started the tests may have it ignored (nohup), and what is ignored is so in all that it starts.
TAKING_SIGHUP = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@contextlib.contextmanager
def seeds_in(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable, "-c", TAKING_SIGHUP, "-u", "-m", "fastrl.ddpg", "--env=Pendulum-v1", "--seeds=0-1", "--name=s",
        "--steps=100000000", "--warm-up-steps=100000000", "--no-tensorboard", "--evaluate-every-steps=0",
        "--log-every-steps=100", f"--runs={folder}",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder) as process:
        try:
            yield process
        finally:
            process.kill()
            for pid in of(folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_a_signal_while_the_runs_are_being_started_ends_them_all(tmp_path: Path) -> None:
    with seeds_in(tmp_path) as process:
        assert process.stdout is not None
        assert "seeds 0-1:" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(30) == 130
        assert of(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_no_run_goes_on_unseen_when_the_terminal_or_whoever_gives_out_the_seeds_is_gone(
    tmp_path: Path, number: signal.Signals
) -> None:
    with seeds_in(tmp_path) as process:
        wait_for(lambda: len(list(tmp_path.glob("s-s*/metrics.csv"))) == 2)
        assert len(of(tmp_path)) == 2
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == (128 + number if number is signal.SIGHUP else -number)
        wait_for(lambda: of(tmp_path) == [])
        assert len([path for path in tmp_path.glob("s-s*/checkpoints") if any(path.iterdir())]) == 2
