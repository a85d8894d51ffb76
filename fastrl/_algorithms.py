"""The trainers by name, for commands that are about any of them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastrl.engine.games import nearest

if TYPE_CHECKING:
    from fastrl.runs.command_line import Trainer

ALGORITHMS = ("dqn", "a3c", "async_q", "ddpg")


def trainer_of(algorithm: str) -> Trainer:
    """By its name."""
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"--algo: '{algorithm}' is unknown{nearest(algorithm, list(ALGORITHMS))}; known: {', '.join(ALGORITHMS)}"
        )
    found: Trainer = importlib.import_module(f"fastrl.{algorithm}").TRAINER
    return found


def new_run(trainer: Trainer, arguments: Sequence[str]) -> Any:
    """The configuration that a trainer's command line asks for, where it asks for one new run."""
    from fastrl.runs.command_line import parse

    config, flags = parse(trainer, arguments)
    if flags.resume or flags.resume_without_replay or flags.seeds is not None or flags.verify_resume is not None:
        raise ValueError(
            f"{trainer.algorithm}: one new run is looked at here; leave out --resume, --seeds and --verify-resume"
        )
    return config
