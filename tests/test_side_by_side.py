"""One run for each of several seeds: what each is told."""

from __future__ import annotations

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
        commands.append(command[3:])
        return SimpleNamespace(poll=lambda: 0, returncode=0, stdout=None)

    monkeypatch.setattr(side_by_side, "usable_cores", lambda: 4)
    monkeypatch.setattr(side_by_side, "subprocess", SimpleNamespace(Popen=started, PIPE=None, DEVNULL=None))

    assert run_seeds("dqn", ["--seeds", "0,7", *said], "0,7", "pair") == 0
    assert commands == [[*told, "--seed", seed, "--name", f"pair-s{seed}"] for seed in ("0", "7")]
