"""Runs as DQN leaves them, trained for seconds and made once: who changes one takes a copy."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import tiny_training
import torch

from fastrl import ddpg, dqn
from fastrl.runs import checkpoint
from fastrl.runs.checkpoint import CheckpointStore
from fastrl.runs.command_line import Trainer

# Networks this small gain nothing from threads, which wait for each other on a machine that others use too.
torch.set_num_threads(1)

_SHARED: dict[str, Any] = {
    **tiny_training.TINY,
    "threads": 1,
    "steps": 300,
    "warm_up_steps": 100,
    "replay_capacity": 2000,
    "batch": 8,
}


@functools.cache
def _directory() -> Path:
    found = Path(tempfile.mkdtemp(prefix="fastrl-tiny-runs-"))
    atexit.register(shutil.rmtree, found, ignore_errors=True)
    return found


def _train(trainer: Trainer, name: str, preset: str, **changes: Any) -> Path:
    trainer.train(tiny_training.preset(trainer, preset, **_SHARED, **changes, runs=_directory(), name=name))
    return _directory() / name


@functools.cache
def pong() -> Path:
    """A run of Pong under protocol sb3."""
    return _train(
        dqn.TRAINER, "pong", "fast", env="PongNoFrameskip-v4", network="a3c", num_envs=4, target_every_steps=100
    )


@functools.cache
def cart() -> Path:
    """A run of CartPole."""
    return _train(dqn.TRAINER, "cart", "classic", hidden_units=(16,))


@functools.cache
def pendulum() -> Path:
    """A run of Pendulum, whose actions are numbers."""
    small = {"actor_hidden_units": (16,), "critic_hidden_units": (16,)}
    return _train(ddpg.TRAINER, "pendulum", "fast", env="Pendulum-v1", **small)


def copy_of(run: Path, to: Path) -> Path:
    """A copy that may be changed, without the replay, which nothing here reads."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("replay"))
    return to


def save_again(run: Path, steps: int, *, best: bool = False, scale: float = 1.0, **policy: Any) -> Path:
    """Add a checkpoint to a run: the newest one's tensors times ``scale``, and with ``policy`` changed."""
    store = CheckpointStore(run / "checkpoints", keep=10)
    newest = checkpoint.read(store.directory / f"ckpt-{store.steps_saved()[0]:012d}.json")
    tensors = {name: t * scale if t.is_floating_point() else t for name, t in newest.tensors.items()}
    state = {**newest.state, "policy": {**newest.state["policy"], **policy}}
    return (store.save_best if best else store.save)(steps, tensors, state)


def damage(path: Path) -> None:
    """Change one byte in the middle of a checkpoint's tensors."""
    (tensors,) = path.parent.glob(f"{path.stem}*.safetensors")
    content = bytearray(tensors.read_bytes())
    content[len(content) // 2] ^= 1
    tensors.write_bytes(content)
