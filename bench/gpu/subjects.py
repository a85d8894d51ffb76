"""What bench/gpu checks and times: configurations for a device, learners, and replays of noise."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from breakout import ENV
from gymnasium import spaces

import fastrl
from fastrl import a3c, async_q, ddpg, dqn
from fastrl.runs import command_line
from fastrl.runs.options import resolved

OBS, ACTION = 17, 6  # numbers of HalfCheetah's


@dataclass(frozen=True)
class Sizes:
    """How much is done on a device. On a CPU as little as shows that it works: only a GPU's figures are of interest."""

    updates: int  # that a check compares after
    rounds: int  # of groups
    batches: int
    warm_up_steps: int
    replay_capacity: int
    log_every_steps: int
    window_s: float  # of which a rate is, where there is time for it


SIZES = {
    "cuda": Sizes(20, 10, 200, 4_000, 100_000, 1_000, 6.0),
    "cpu": Sizes(2, 1, 20, 64, 4_000, 32, 0.5),
}
# Threads of torch that wait for each other make a busy machine far slower than one thread is.
_TORCH_THREADS = 1
NOTHING_BESIDE = {
    "torch_threads": _TORCH_THREADS, "evaluate_every_steps": 0, "checkpoint_every_minutes": 0.0, "tensorboard": False,
}  # fmt: skip


def be_one_of_many() -> None:
    """What a training sets for itself, for all that is no training."""
    torch.set_num_threads(_TORCH_THREADS)


def dqn_config(preset: str, device: str, **changes: Any) -> dqn.Config:
    base: dqn.Config = command_line.with_preset(dqn.TRAINER, preset)
    fixed = {"env": ENV, "device": device, "precision": "fp32", "checkpoint_replay": False, **NOTHING_BESIDE}
    return resolved(dataclasses.replace(base, **{**fixed, **changes}))


def group_config(algorithm: Any, device: str, **changes: Any) -> Any:
    """Of A3C or asynchronous Q."""
    base = command_line.with_preset(algorithm.TRAINER, "paper")
    return dataclasses.replace(base, **{"env": ENV, "device": device, **NOTHING_BESIDE, **changes})


# Algorithm and what makes it one of its kinds.
GROUPS: dict[str, tuple[Any, dict[str, Any]]] = {
    "A3C": (a3c, {}),
    "n-step Q": (async_q, {"n_step": 5}),
    "one-step Q": (async_q, {"n_step": 1}),
    "Sarsa": (async_q, {"n_step": 1, "sarsa": True}),
}


def ddpg_learner(device: str) -> ddpg.Learner:
    """Of HalfCheetah's shape."""
    base = command_line.with_preset(ddpg.TRAINER, "fast")
    config = resolved(dataclasses.replace(base, device=device))
    shared = {"obs_shape": [1, OBS], "action_size": ACTION, "final_uniform": config.final_uniform}
    actor = {"kind": "actor", "hidden_units": list(config.actor_hidden_units), **shared}
    critic = {"kind": "critic", "hidden_units": list(config.critic_hidden_units), "action_layer": 0, **shared}
    return ddpg.Learner(config, actor, critic)


def replay_of_frames(capacity: int, alpha: float | None = None) -> fastrl.Replay:
    """Two lanes that have come round, with ends and cuts in them; equal arguments, equal contents."""
    made = fastrl.Replay(capacity, lanes=2, seed=3, alpha=alpha)
    frames = np.random.default_rng(0).integers(0, 256, (512, 84, 84), np.uint8)
    for lane in range(2):
        with made.writer(lane) as writer:
            writer.start(frames[0])
            for step in range(3 * capacity // 4):
                over = step % 97 == 96
                ended = over and step % 2 == 0
                writer.append(step % 4, float(step % 3 - 1), frames[step % 512], ended, over and not ended)
                if over:
                    writer.start(frames[step % 512])
    return made


def replay_of_numbers(capacity: int) -> fastrl.Replay:
    """Of HalfCheetah's shape."""
    made = fastrl.Replay(capacity, 1, (OBS,), "float32", 1, action=spaces.Box(-1, 1, (ACTION,)))
    generator = np.random.default_rng(0)
    with made.writer(0) as writer:
        writer.start(generator.standard_normal(OBS).astype(np.float32))
        for step in range(capacity):
            action = generator.uniform(-1, 1, ACTION).astype(np.float32)
            seen = generator.standard_normal(OBS).astype(np.float32)
            writer.append(action, float(step % 3), seen, False, False)
    return made
