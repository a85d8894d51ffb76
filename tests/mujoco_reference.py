"""The oracle of the MuJoCo pool, Gymnasium's own environments, and the comparison with them, to the bit.

As a program it repeats the figures of docs/mujoco.md: ``python tests/mujoco_reference.py --steps 10000 --seeds 5``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import fastrl
from fastrl.engine.mujoco_tasks import task_ids

MODES = {
    "next_step": AutoresetMode.NEXT_STEP,
    "same_step": AutoresetMode.SAME_STEP,
    "disabled": AutoresetMode.DISABLED,
}


def reference_envs(
    env_id: str, num_envs: int, autoreset: str = "next_step", max_episode_steps: int | None = None, **settings: Any
) -> SyncVectorEnv:
    """Gymnasium's environments side by side."""
    limit = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
    makers = [lambda: gymnasium.make(env_id, **limit, **settings)] * num_envs
    return SyncVectorEnv(makers, autoreset_mode=MODES[autoreset])


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    """Equal in structure, keys, types, shapes and every bit."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), f"{where}: keys {sorted(ours)} and {sorted(theirs)}"
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where} {key}")
    elif isinstance(theirs, tuple):
        assert len(ours) == len(theirs), where
        for place, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(our, their, f"{where} [{place}]")
    elif theirs is None:
        assert ours is None, where
    else:
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), f"{where}: {ours} and {theirs}"
        if theirs.dtype == object:
            assert_same(tuple(ours), tuple(theirs), where)
        else:
            assert ours.tobytes() == theirs.tobytes(), f"{where}: {ours} and {theirs}"


def random_actions(space: gymnasium.spaces.Box, steps: int, seed: int, dtype: Any = np.float32) -> np.ndarray:
    """Rows for a batch of envs, a fifth wider than the space: what lies outside it must be treated alike too."""
    high = space.high.astype(np.float64)
    noise = np.random.default_rng(seed).uniform(-1.2, 1.2, size=(steps, *space.shape))
    return (noise * high).astype(dtype)


def play_side_by_side(pool: fastrl.MujocoPool, envs: SyncVectorEnv, steps: int, seed: int, dtype: Any) -> int:
    """Reset and step both, comparing everything; returns how many episodes ended."""
    where = f"{pool.task.env_id} seed {seed}"
    assert_same(pool.reset(seed=seed), envs.reset(seed=seed), f"{where} reset")
    ends = 0
    for number, action in enumerate(random_actions(pool.action_space, steps, seed, dtype)):
        ours, theirs = pool.step(action), envs.step(action)
        assert_same(ours, theirs, f"{where} step {number}")
        over = ours[2] | ours[3]
        ends += int(over.sum())
        if over.any() and pool.metadata["autoreset_mode"] == AutoresetMode.DISABLED:
            assert_same(
                pool.reset(options={"reset_mask": over}),
                envs.reset(options={"reset_mask": over}),
                f"{where} reset after step {number}",
            )
    return ends


def main() -> None:
    """Compare every task over many steps and print a line for each."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=10_000, help="steps a seed and task")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", nargs="*", default=task_ids())
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    os.chdir(tempfile.mkdtemp())  # MuJoCo writes its warnings to a file where it runs
    for env_id in asked.tasks:
        ends = 0
        for seed in range(asked.seeds):
            pool = fastrl.MujocoPool(env_id, 2, threads=2, autoreset=list(MODES)[seed % 3])
            envs = reference_envs(env_id, 2, list(MODES)[seed % 3])
            dtype = (np.float32, np.float64)[seed % 2]
            ends += play_side_by_side(pool, envs, asked.steps // 2, seed, dtype)
            pool.close()
            envs.close()
        print(f"| {env_id} | {asked.seeds * (asked.steps // 2) * 2:,} | {ends:,} | 0 |", flush=True)


if __name__ == "__main__":
    main()
