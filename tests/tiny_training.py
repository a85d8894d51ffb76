"""Real trainings that take seconds: what their settings share, and a DQN whose replay comes round several times."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from nursery import Child, Nursery

from fastrl import dqn
from fastrl.runs import child_run, command_line
from fastrl.runs.checkpoint import CheckpointStore
from fastrl.runs.run_dir import as_json
from fastrl.runs.session import Resumed, Session, resume

TINY: dict[str, Any] = {
    "torch_threads": 1,
    "evaluate_every_steps": 0,
    "checkpoint_every_minutes": 0.0,
    "tensorboard": False,
}
TINY_PONG: dict[str, Any] = {**TINY, "env": "PongNoFrameskip-v4", "network": "a3c", "precision": "fp32", "threads": 1}

STEPS = 480
WARM_UP = 100
# Of metrics.csv: what tells of the machine, not of the run.
OF_THE_MACHINE = (
    "wall_s", "memory_mb", "frames_per_s", "steps_per_s", "updates_per_s", "stamps_share", "core_wait_share",
)  # fmt: skip


def preset(trainer: command_line.Trainer, name: str, /, **changes: Any) -> Any:
    """A preset's configuration with changes."""
    return dataclasses.replace(command_line.with_preset(trainer, name), **changes)


def require_whole_configuration(config: Any, name: str) -> None:
    """A preset says which it is, and comes back from config.json as it was."""
    assert config.preset == name
    stored = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    assert command_line.from_stored(type(config), stored) == config


def config_of(runs: Path, name: str, **changes: Any) -> dqn.Config:
    fixed: dict[str, Any] = {
        **TINY_PONG,
        "replay_capacity": 288,
        "warm_up_steps": WARM_UP,
        "num_envs": 4,
        "batch": 8,
        "n_step": 3,
        "target_every_steps": 40,
        "epsilon_steps": 400,
        "steps": STEPS,
        "runs": runs,
        "name": name,
        "device": "cpu",
        "log_every_steps": 40,
    }
    return dqn.Config(**{**fixed, **changes})


def flags_of(config: dqn.Config) -> list[str]:
    """The command line that stands for what differs from the defaults."""
    default = dqn.Config()
    found = []
    for name, value in as_json(config).items():
        if value != as_json(default)[name]:
            flag = name.replace("_", "-")
            found += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return found


def trained(config: dqn.Config, resume_run: Path | None = None) -> str:
    """Train here; the digest of everything at the end."""
    before = Session.digest_at_end
    Session.digest_at_end = True
    try:
        session = dqn.train(config, resume_run=resume_run)
    finally:
        Session.digest_at_end = before
    assert session.exit_code == 0
    assert session.final_digest is not None
    return str(session.final_digest)


def cut_back(run: Path, steps: int, name: str) -> Path:
    """A copy of a run as if it had been killed right after its checkpoint of ``steps``."""
    copy = run.with_name(name)
    shutil.copytree(run, copy)
    CheckpointStore(copy / "checkpoints").forget_after(steps)
    return copy


def start(nursery: Nursery, config: dqn.Config, log: Path, resume_run: Path | None = None) -> Child:
    """Train in a process of its own, which leaves its digest in the run."""
    order = {"config": as_json(config), "resume": None if resume_run is None else str(resume_run)}
    return nursery.start("tiny_training:train_and_tell", order, output=log)


def wait_for_a_checkpoint(child: Child, run: Path) -> None:
    patience = time.monotonic() + 60
    while not CheckpointStore(run / "checkpoints").steps_saved():
        assert time.monotonic() < patience, child.said()
        time.sleep(0.001)


def soon_s() -> float:
    """Within this a training ends after a signal; the promise is for a machine not busy with something else."""
    return 5 if os.getloadavg()[0] < 2 * len(os.sched_getaffinity(0)) else 20


def train_and_tell(order: dict[str, Any]) -> None:
    child_run.train("fastrl.dqn", {**order, "digest": True})


def digest_of(run: Path) -> str:
    found: str = json.loads((run / child_run.DIGEST_FILE).read_text())
    return found


def require_resumable(run: Path) -> Resumed:
    found = resume(run, without_replay=False, accept_changed_bits=False)
    found.run.release()
    return found


def rows(run: Path) -> list[dict[str, str]]:
    """Of metrics.csv, without what tells of the machine."""
    with open(run / "metrics.csv", newline="") as file:
        return [
            {name: value for name, value in row.items() if name not in OF_THE_MACHINE and not name.startswith("share/")}
            for row in csv.DictReader(file)
        ]


def processes_with(text: str) -> list[str]:
    """Command lines of processes that have ``text`` in them."""
    found = subprocess.run(["pgrep", "-af", text], capture_output=True, text=True, check=False)
    return [line for line in found.stdout.splitlines() if "pgrep" not in line]
