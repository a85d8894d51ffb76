"""Steps a second of the MuJoCo pool, beside EnvPool, Gymnasium's vector envs and the bare mj_step calls.

Same tasks, same random actions, 16 envs, each peer with its own autoreset. The limit is a loop in C++, in as many
threads, that makes the very mj_step calls (and resets) that our pool makes in the same round, in the same order, and
nothing else: no observation, reward or Python, and no waiting of threads for each other until the round ends. MuJoCo's
timers stand still in it as they do in the pool.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from contest import in_threads, side_by_side, stepper

import fastrl
from fastrl.engine import native
from fastrl.engine.mujoco_library import bound_library
from fastrl.engine.mujoco_pool import env_memory
from fastrl.engine.mujoco_tasks import task_ids

QUICK_TASKS = ("Hopper-v5",)
NUM_ENVS = 16
# So that a round of each task takes about as long.
STEPS = {"InvertedPendulum-v5": 500, "HalfCheetah-v5": 250, "Swimmer-v5": 250}
OTHER_STEPS = 100


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo writes its warnings to a file where it runs."""
    monkeypatch.chdir(tmp_path)


def random_actions(env_id: str, steps: int) -> np.ndarray:
    space = gymnasium.make(env_id).action_space
    noise = np.random.default_rng(0).uniform(-1, 1, size=(steps, NUM_ENVS, *space.shape))
    return (noise * space.high).astype(np.float32)


def our_pool(env_id: str, threads: int, actions: np.ndarray) -> Callable[[], None]:
    pool = fastrl.MujocoPool(env_id, NUM_ENVS, threads=threads)
    pool.reset(seed=0)
    return stepper(pool.step, actions)


def envpool_pool(env_id: str, threads: int, actions: np.ndarray) -> Callable[[], None]:
    import envpool

    envs = envpool.make(env_id, env_type="gymnasium", num_envs=NUM_ENVS, num_threads=threads, seed=0)
    envs.reset()
    return stepper(envs.step, actions.astype(np.float64))  # its own action type


def gymnasium_envs(kind: Any, env_id: str, threads: int, actions: np.ndarray) -> Callable[[], None]:
    envs = kind([partial(gymnasium.make, env_id)] * NUM_ENVS)
    envs.reset(seed=0)
    return stepper(envs.step, actions)


PEERS: dict[str, Callable[[str, int, np.ndarray], Callable[[], None]]] = {
    "EnvPool": envpool_pool,
    "Gymnasium sync": partial(gymnasium_envs, gymnasium.vector.SyncVectorEnv),
    "Gymnasium async": partial(gymnasium_envs, gymnasium.vector.AsyncVectorEnv),
}


class BareLoop:
    """The physics of the calls that our pool makes, round after round, split over threads."""

    def __init__(self, env_id: str, threads: int, actions: np.ndarray, rounds: int) -> None:
        pool = fastrl.MujocoPool(env_id, NUM_ENVS, threads=1)
        pool.reset(seed=0)
        model, self._rules = pool.task.prototype.model, pool.task.rules
        self._model, self._threads, self._rounds = model, threads, []
        self._data = [mujoco.MjData(model) for _ in range(NUM_ENVS)]
        for ours, theirs in zip(self._data, pool._data, strict=True):
            mujoco.mj_copyData(ours, model, theirs)
        self.last_qpos = np.zeros((NUM_ENVS, model.nq))  # where our pool is after the rounds
        for _ in range(rounds):
            calls: dict[str, Any] = {
                "is_reset": np.zeros((NUM_ENVS, len(actions)), dtype=np.bool_),
                "ctrl": np.ascontiguousarray(actions.swapaxes(0, 1), dtype=np.float64),
                "qpos": np.zeros((NUM_ENVS, len(actions), model.nq)),
                "qvel": np.zeros((NUM_ENVS, len(actions), model.nv)),
            }
            for step, row in enumerate(actions):
                pool.step(row)
                for env in np.flatnonzero(pool._was_reset):
                    calls["is_reset"][env, step] = True
                    calls["qpos"][env, step], calls["qvel"][env, step] = pool._data[env].qpos, pool._data[env].qvel
            self._rounds.append(calls)
        for env, data in enumerate(pool._data):
            self.last_qpos[env] = data.qpos
        pool.close()
        self._round = 0

    def __call__(self) -> None:
        calls = self._rounds[self._round % len(self._rounds)]
        self._round += 1

        def step(envs: slice) -> None:
            native.core.mujoco_step_loop(
                bound_library(),
                self._model._address,
                [env_memory(data) for data in self._data[envs]],
                self._rules,
                **{name: np.ascontiguousarray(values[envs]) for name, values in calls.items()},
                frame_skip=self._rules["frame_skip"],
            )

        side_by_side(step, self._threads)

    def qpos(self) -> np.ndarray:
        return np.stack([data.qpos for data in self._data])


def check_answer(env_id: str) -> None:
    """The pool that is timed gives what Gymnasium gives, and the bare loop ends where the pool ends."""
    actions = random_actions(env_id, 120)
    pool = fastrl.MujocoPool(env_id, NUM_ENVS, threads=2)
    envs = gymnasium.vector.SyncVectorEnv([partial(gymnasium.make, env_id)] * NUM_ENVS)
    assert np.array_equal(pool.reset(seed=3)[0], envs.reset(seed=3)[0])
    for row in actions:
        for ours, theirs in zip(pool.step(row)[:4], envs.step(row)[:4], strict=True):
            assert np.array_equal(ours, theirs)
    pool.close()
    envs.close()
    bare = BareLoop(env_id, 2, actions, rounds=2)
    bare()
    bare()
    assert np.array_equal(bare.qpos(), bare.last_qpos)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("env_id", task_ids())
def test_mujoco_pool_speed(contest: Any, env_id: str, threads: int, quick: bool) -> None:
    if quick and env_id not in QUICK_TASKS:
        pytest.skip("--quick times one task")
    warnings.simplefilter("ignore")
    check_answer(env_id)
    steps, rounds = (20, 2) if quick else (STEPS.get(env_id, OTHER_STEPS), 7)
    actions = random_actions(env_id, steps)
    match = contest(f"{env_id}, {in_threads(threads)}", "steps/s", steps * NUM_ENVS, limit="mj_step loop")
    limit = BareLoop(env_id, threads, actions, rounds + 1)
    others = {"mj_step loop": limit, **match.peers(PEERS, env_id, threads, actions)}
    match.run(our_pool(env_id, threads, actions), others, rounds)
