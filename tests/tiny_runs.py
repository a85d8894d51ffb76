"""Runs as DQN leaves them, trained for seconds and made once: who changes one takes a copy. And an env to play in."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import tiny_training
import torch
from gymnasium import spaces

from fastrl import dqn
from fastrl.runs import checkpoint
from fastrl.runs.checkpoint import CheckpointStore

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


def _train(name: str, preset: str, **changes: Any) -> Path:
    dqn.train(tiny_training.preset(dqn.TRAINER, preset, **_SHARED, **changes, runs=_directory(), name=name))
    return _directory() / name


@functools.cache
def pong() -> Path:
    """A run of Pong under protocol sb3."""
    return _train("pong", "fast", env="PongNoFrameskip-v4", network="a3c", num_envs=4, target_every_steps=100)


@functools.cache
def cart() -> Path:
    """A run of CartPole."""
    return _train("cart", "classic", hidden_units=(16,))


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


class Uneven(gymnasium.Env[Any, Any]):
    """Games of 1 or 20 steps, by chance; the return is the length. Takes actions 1 and 2. Draws its step number."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(0, 100, (3,), np.float32)
        self.action_space = spaces.Discrete(2, start=1)
        self.render_mode = render_mode

    def _obs(self) -> Any:
        return np.full(3, self._left, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._step, self._left = 0, int(self.np_random.choice([1, 20]))
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action in (1, 2), f"action {action} is none of this env's"
        self._step, self._left = self._step + 1, self._left - 1
        return self._obs(), 1.0, self._left == 0, False, {}

    def render(self) -> Any:
        picture = np.zeros((10, 20, 3), np.uint8)
        picture[:, : self._step] = (200, 10 * self._step, 0)
        return picture


UNEVEN = "fastrl-tests/Uneven-v0"
if UNEVEN not in gymnasium.registry:
    gymnasium.register(UNEVEN, Uneven)
