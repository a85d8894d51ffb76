"""The MuJoCo pool: equal to Gymnasium's environments to the bit, and every way of using it wrongly."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from mujoco_reference import assert_same, play_side_by_side, random_actions, reference_envs
from two_threads import refusal_of_two_threads

import fastrl
from fastrl.engine import mujoco_library, mujoco_pool, native
from fastrl.engine.mujoco_tasks import numpy_rounds_dot_once, task_ids


@pytest.fixture(autouse=True)
def _few_starts_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the short games here need more than were drawn at first."""
    monkeypatch.setattr(mujoco_pool, "_STARTS_EACH", 4)


# Different from Gymnasium's, every one of them; the ranges so that they decide something.
SETTINGS: dict[str, dict[str, Any]] = {
    "HalfCheetah-v5": {
        "frame_skip": 3,
        "forward_reward_weight": 1.7,
        "ctrl_cost_weight": 0.3,
        "reset_noise_scale": 0.03,
        "exclude_current_positions_from_observation": False,
    },
    "Hopper-v5": {
        "frame_skip": 2,
        "forward_reward_weight": 0.7,
        "ctrl_cost_weight": 0.01,
        "healthy_reward": 0.3,
        "terminate_when_unhealthy": False,
        "healthy_state_range": (-3.0, 2.5),
        "healthy_z_range": (1.2, 1.3),
        "healthy_angle_range": (-0.05, 0.1),
        "reset_noise_scale": 0.02,
        "exclude_current_positions_from_observation": False,
    },
    "Walker2d-v5": {
        "frame_skip": 3,
        "forward_reward_weight": 0.7,
        "ctrl_cost_weight": 0.01,
        "healthy_reward": 0.3,
        "terminate_when_unhealthy": False,
        "healthy_z_range": (0.9, 1.2),
        "healthy_angle_range": (-0.1, 0.2),
        "reset_noise_scale": 0.02,
        "exclude_current_positions_from_observation": False,
    },
    "Ant-v5": {
        "frame_skip": 4,
        "forward_reward_weight": 0.7,
        "ctrl_cost_weight": 0.01,
        "contact_cost_weight": 0.02,
        "healthy_reward": 0.3,
        "main_body": "aux_1",
        "terminate_when_unhealthy": False,
        "healthy_z_range": (0.5, 0.7),
        "contact_force_range": (-0.4, 3.0),
        "reset_noise_scale": 0.05,
        "exclude_current_positions_from_observation": False,
        "include_cfrc_ext_in_observation": False,
    },
    "Swimmer-v5": {
        "frame_skip": 2,
        "forward_reward_weight": 1.7,
        "ctrl_cost_weight": 0.3,
        "reset_noise_scale": 0.03,
        "exclude_current_positions_from_observation": False,
    },
    "InvertedPendulum-v5": {"frame_skip": 1, "reset_noise_scale": 0.05},
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo writes its warnings to a file where it runs."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pool() -> Iterator[fastrl.MujocoPool]:
    made = fastrl.MujocoPool("Hopper-v5", num_envs=3, threads=2)
    yield made
    made.close()


def play(pool: fastrl.MujocoPool, steps: int, seed: int = 0) -> list[Any]:
    return [pool.step(action) for action in random_actions(pool.action_space, steps, seed)]


# ---- Equal to Gymnasium


@pytest.mark.parametrize("autoreset", ["next_step", "same_step", "disabled"])
@pytest.mark.parametrize("env_id", task_ids())
def test_every_bit_is_gymnasiums(env_id: str, autoreset: str, session_seed: int) -> None:
    limit = 260  # so that tasks without a termination end too
    envs = reference_envs(env_id, 3, autoreset, limit)
    pool = fastrl.MujocoPool(env_id, 3, threads=2, autoreset=autoreset, max_episode_steps=limit)
    ends = 0
    for seed, dtype in ((session_seed, np.float32), (session_seed + 7, np.float64)):
        ends += play_side_by_side(pool, envs, 420, seed, dtype)

    assert ends >= 6
    pool.close()
    envs.close()


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Swimmer-v5"])
def test_the_tasks_own_time_limit_truncates(env_id: str) -> None:
    pool = fastrl.MujocoPool(env_id, 2, threads=1)
    envs = reference_envs(env_id, 2)

    assert play_side_by_side(pool, envs, 1010, 3, np.float32) == 2
    assert pool.task.max_episode_steps == 1000


@pytest.mark.parametrize("env_id", task_ids())
def test_every_setting_is_gymnasiums(env_id: str, session_seed: int) -> None:
    pool = fastrl.MujocoPool(env_id, 2, threads=1, max_episode_steps=60, **SETTINGS[env_id])
    envs = reference_envs(env_id, 2, max_episode_steps=60, **SETTINGS[env_id])

    assert set(SETTINGS[env_id]) == set(pool.task.settings)
    assert play_side_by_side(pool, envs, 150, session_seed, np.float32) >= 4


@pytest.mark.parametrize("env_id", task_ids())
def test_a_comparison_sees_each_setting_that_is_wrong(env_id: str) -> None:
    """Planted mistakes: one setting of the pool differs from the reference's."""
    unseen = []
    for name, value in SETTINGS[env_id].items():
        pool = fastrl.MujocoPool(env_id, 2, threads=1, max_episode_steps=80, **{name: value})
        envs = reference_envs(env_id, 2, max_episode_steps=80)
        try:
            play_side_by_side(pool, envs, 200, 1, np.float32)
            unseen.append(name)
        except AssertionError:
            pool.close()

    assert unseen == []


def test_a_comparison_sees_a_wrong_type_and_a_wrong_order_of_addition() -> None:
    """Planted mistakes: a cost computed in double for actions of float32, and summed from the other end."""
    envs = reference_envs("Ant-v5", 1, terminate_when_unhealthy=False)
    envs.reset(seed=0)
    seen = {"type": 0, "order": 0}
    for action in random_actions(envs.action_space, 50, 0):
        cost = -envs.step(action)[4]["reward_ctrl"][0]
        seen["type"] += np.float32(0.5 * np.sum(np.square(action[0].astype(np.float64)))) != cost
        seen["order"] += np.float32(0.5) * np.add.accumulate(np.square(action[0]))[-1] != cost

    assert min(seen.values()) > 0


def test_a_start_that_mujoco_refuses_is_treated_alike() -> None:
    """Positions beyond what MuJoCo takes for sane: it warns and starts the model anew in the middle of a step."""
    pool = fastrl.MujocoPool("HalfCheetah-v5", 3, threads=2, reset_noise_scale=1e11)
    envs = reference_envs("HalfCheetah-v5", 3, reset_noise_scale=1e11)

    play_side_by_side(pool, envs, 20, 0, np.float32)


def test_the_norm_is_taken_as_numpy_takes_it_here() -> None:
    def rounded_once(x: float, y: float) -> float:
        return float(Fraction(x * x) + Fraction(y) * Fraction(y))

    pairs = np.random.default_rng(0).uniform(-3, 3, size=(500, 2))
    expected = [rounded_once(x, y) if numpy_rounds_dot_once() else x * x + y * y for x, y in pairs.tolist()]

    assert [float(np.linalg.norm(pair, ord=2)) for pair in pairs] == [math.sqrt(square) for square in expected]


def test_seeds_give_gymnasiums_starts() -> None:
    pool = fastrl.MujocoPool("Ant-v5", 3, threads=1, seed=4)
    envs = reference_envs("Ant-v5", 3)

    assert_same(pool.reset(), envs.reset(seed=4), "the constructor's seed")
    assert_same(pool.reset(), envs.reset(), "going on with the generators")
    assert_same(pool.reset(seed=[9, None, 2]), envs.reset(seed=[9, None, 2]), "one an env")
    mask = np.array([False, True, True])
    ours, theirs = pool.reset(options={"reset_mask": mask}), envs.reset(options={"reset_mask": mask})
    assert_same(ours, theirs, "some of them")
    for _ in range(20):  # more than are drawn ahead
        assert_same(pool.reset(), envs.reset(), "many in a row")
    unseeded = [fastrl.MujocoPool("Ant-v5", 1, seed=None).reset()[0] for _ in range(2)]
    assert not np.array_equal(*unseeded)


@pytest.mark.parametrize("env_id", ["Ant-v5", "Hopper-v5"])
def test_threads_change_no_bit(env_id: str) -> None:
    results = []
    for threads in (1, 2):
        pool = fastrl.MujocoPool(env_id, 5, threads=threads, autoreset="same_step", max_episode_steps=50)
        assert pool.threads == threads
        results.append([pool.reset(seed=1), *play(pool, 200)])
        pool.close()

    assert_same(tuple(results[0]), tuple(results[1]))


# ---- Gymnasium's API


def test_spaces_are_gymnasiums(pool: fastrl.MujocoPool) -> None:
    envs = reference_envs("Hopper-v5", 3)

    assert pool.single_observation_space == envs.single_observation_space
    assert pool.single_action_space == envs.single_action_space
    assert pool.observation_space == envs.observation_space
    assert pool.action_space == envs.action_space
    assert pool.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


def test_make_vec_finds_the_pool_under_its_registered_id() -> None:
    envs = gymnasium.make_vec("fastrl/Hopper-v5", num_envs=2, threads=1, ctrl_cost_weight=0.1)

    assert isinstance(envs.unwrapped, fastrl.MujocoPool)
    assert envs.unwrapped.task.settings["ctrl_cost_weight"] == 0.1
    assert envs.reset(seed=0)[0].shape == (2, 11)
    envs.close()


def test_gymnasiums_vector_wrappers_work_on_it() -> None:
    envs = RecordEpisodeStatistics(fastrl.MujocoPool("InvertedPendulum-v5", 2, threads=1))
    envs.reset(seed=0)
    lengths = []
    for _ in range(100):
        info = envs.step(envs.action_space.sample())[4]
        lengths += info["episode"]["l"][info["_episode"]].tolist() if "episode" in info else []

    assert len(lengths) > 4


def test_results_are_the_callers_to_keep(pool: fastrl.MujocoPool) -> None:
    pool.reset(seed=0)
    results = play(pool, 30)
    texts = [repr(r) for r in results]
    observations = [r[0].copy() for r in results]
    play(pool, 30, seed=1)

    assert [repr(r) for r in results] == texts
    assert all(np.array_equal(r[0], copy) for r, copy in zip(results, observations, strict=True))


def test_actions_may_be_of_other_shapes_of_memory_and_whole_numbers(pool: fastrl.MujocoPool) -> None:
    actions = random_actions(pool.action_space, 1, 0)[0]
    given = [actions, np.asfortranarray(actions), actions.astype(">f4"), np.repeat(actions, 2, axis=1)[:, ::2]]
    results = []
    for action in given:
        pool.reset(seed=0)
        results.append(pool.step(action))
    pool.reset(seed=0)
    whole = pool.step(np.ones((3, 3), dtype=np.int64))
    pool.reset(seed=0)

    for result in results[1:]:
        assert_same(result, results[0])
    assert_same(whole, pool.step(np.ones((3, 3)).tolist()))


# ---- Saved states


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
@pytest.mark.parametrize("env_id", task_ids())
def test_a_saved_state_goes_on_to_the_bit(env_id: str, autoreset: str, session_seed: int) -> None:
    settings: dict[str, Any] = {"autoreset": autoreset, "max_episode_steps": 60}
    pool = fastrl.MujocoPool(env_id, 3, threads=2, **settings)
    other = fastrl.MujocoPool(env_id, 3, threads=1, **settings)
    pool.reset(seed=session_seed)
    play(pool, 47, seed=1)
    for steps in (0, 1, 13):  # with next_step: also between an end and its reset
        play(pool, steps, seed=2)
        states = pool.save_state()
        went_on = play(pool, 150, seed=3)  # further than the starts that were drawn ahead
        pool.load_state(states)
        other.load_state(states[::-1], env_ids=[2, 1, 0])

        assert np.array_equal(pool.observations(), other.observations())
        assert_same(tuple(play(pool, 150, seed=3)), tuple(went_on))
        assert_same(tuple(play(other, 150, seed=3)), tuple(went_on))
        pool.load_state(states)


def test_a_state_without_its_velocities_is_noticed() -> None:
    """Planted mistake: what a position and velocity alone would restore does not go on to the bit."""
    pool = fastrl.MujocoPool("Ant-v5", 1, threads=1)
    pool.reset(seed=0)
    play(pool, 30)
    state = pool.save_state()
    went_on = play(pool, 3, seed=1)
    pool.load_state(state)
    pool._data[0].qacc_warmstart[:] = 0
    forgot_warm_start = play(pool, 3, seed=1)
    pool.load_state(state)
    pool._data[0].xpos[1] = 0
    forgot_place = play(pool, 3, seed=1)

    for planted in (forgot_warm_start, forgot_place):
        with pytest.raises(AssertionError):
            assert_same(tuple(planted), tuple(went_on))


def test_a_state_goes_on_in_another_process(pool: fastrl.MujocoPool, tmp_path: Path) -> None:
    pool.reset(seed=5)
    play(pool, 25)
    for place, state in enumerate(pool.save_state()):
        (tmp_path / f"{place}.state").write_bytes(state)
    code = (
        "import sys, numpy as np, fastrl\n"
        f"fastrl.engine.mujoco_pool._STARTS_EACH = {mujoco_pool._STARTS_EACH}\n"
        "pool = fastrl.MujocoPool('Hopper-v5', num_envs=3, threads=1)\n"
        "pool.load_state([open(f'{i}.state', 'rb').read() for i in range(3)])\n"
        "for _ in range(60): obs = pool.step(np.full((3, 3), 0.3))[0]\n"
        "print(obs.tobytes().hex())"
    )
    root = str(Path(fastrl.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    for _ in range(60):
        obs = pool.step(np.full((3, 3), 0.3))[0]

    assert run.stdout.strip() == obs.tobytes().hex()


def test_states_that_do_not_fit_are_refused(pool: fastrl.MujocoPool) -> None:
    pool.reset(seed=0)
    states = pool.save_state()
    before = pool.save_state()
    damaged = states[1][:-3] + b"abc"
    others = fastrl.MujocoPool("Hopper-v5", 1, threads=1, ctrl_cost_weight=0.5)
    others.reset()

    with pytest.raises(ValueError, match=r"load_state: env 1 .Hopper-v5.: the state is damaged"):
        pool.load_state([states[0], damaged, states[2]])
    with pytest.raises(ValueError, match=r"load_state: env 0 .Hopper-v5.: the state was saved under other rules"):
        pool.load_state(others.save_state(), env_ids=[0])
    with pytest.raises(ValueError, match="load_state: got 3 states for 1 envs"):
        pool.load_state(states, env_ids=[0])
    with pytest.raises(ValueError, match="env id 1 is given twice"):
        pool.load_state(states[:2], env_ids=[1, 1])
    with pytest.raises(ValueError, match=r"load_state: env id: 3 is outside \[0, 2\]"):
        pool.load_state(states[:1], env_ids=[3])
    with pytest.raises(TypeError, match="the state for env 0 is str, not bytes"):
        pool.load_state(["x"], env_ids=[0])
    with pytest.raises(TypeError, match="bytes is not the list of states"):
        pool.load_state(states[0])
    assert pool.save_state() == before


# ---- A library that does not fit


def refusal(module_file: str | None, **symbols: str) -> str:
    with pytest.raises(RuntimeError) as refused:
        mujoco_library.open_library(module_file, **symbols)
    text = str(refused.value)
    assert f"Found mujoco {mujoco.__version__} at {module_file}" in text
    assert mujoco_library.SUPPORTED_MUJOCO in text
    return text


def test_a_library_without_the_functions_is_refused() -> None:
    ours = native.core.__file__

    assert f"'{ours}' and what it loads have no mj_step" in refusal(ours)
    assert "is not loaded in this process" in refusal("/nowhere/libmujoco.so")
    assert "have no mj_leap" in refusal(mujoco._functions.__file__, step_symbol="mj_leap")


@pytest.mark.parametrize("wrong", ["mj_forward", "mj_step1", "mj_kinematics"])
def test_a_library_that_computes_something_else_is_refused(wrong: str) -> None:
    said = refusal(mujoco._functions.__file__, step_symbol=wrong)

    assert "self-check: frame 0:" in said
    assert "differs from what mujoco's Python face computes" in said


def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mujoco, "mj_version", lambda: 1)

    version = mujoco_library.bound_library().version()
    assert f"is version {version}, Python's is 1" in refusal(mujoco._functions.__file__)


def test_a_package_without_addresses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mujoco, "MjData", SimpleNamespace())
    assert "the package's MjData has no _address" in refusal(mujoco._functions.__file__)

    monkeypatch.undo()
    monkeypatch.setattr(mujoco, "mjtState", SimpleNamespace())
    assert "has no mjSTATE_INTEGRATION" in refusal(mujoco._functions.__file__)


def test_a_package_with_other_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class SinglePrecision:
        _address = 0

        def __init__(self, model: Any) -> None:
            self.qpos = np.zeros(7, dtype=np.float32)

    monkeypatch.setattr(mujoco, "MjData", SinglePrecision)

    assert "MjData.qpos is not one array of float64" in refusal(mujoco._functions.__file__)


def test_mujocos_timers_run_again_after_a_step(pool: fastrl.MujocoPool) -> None:
    def timed() -> float:
        data = mujoco.MjData(pool.task.prototype.model)
        mujoco.mj_step(pool.task.prototype.model, data, 20)
        return float(data.timer[mujoco.mjtTimer.mjTIMER_STEP].duration)

    before = timed()
    pool.reset(seed=0)
    play(pool, 5)

    assert (timed() > 0) == (before > 0)
    assert pool._data[0].timer[mujoco.mjtTimer.mjTIMER_STEP].duration == 0


# ---- Wrong use


def test_bad_arguments_are_refused() -> None:
    make = fastrl.MujocoPool
    with pytest.raises(ValueError, match=r"'HalfCheetah-v4' is unknown; did you mean 'HalfCheetah-v5'.*known: Half"):
        make("HalfCheetah-v4")
    with pytest.raises(TypeError, match="'ctrl_cost' is no setting of Hopper-v5; did you mean 'ctrl_cost_weight'"):
        make("Hopper-v5", ctrl_cost=1.0)
    with pytest.raises(TypeError, match="'contact_cost_weight' is no setting of Hopper-v5"):
        make("Hopper-v5", contact_cost_weight=1.0)
    with pytest.raises(TypeError, match="'xml_file' is no setting"):
        make("Hopper-v5", xml_file="x.xml")
    with pytest.raises(TypeError, match="ctrl_cost_weight: '1' is not a number"):
        make("Hopper-v5", ctrl_cost_weight="1")
    with pytest.raises(ValueError, match="ctrl_cost_weight: nan is not a finite number"):
        make("Hopper-v5", ctrl_cost_weight=float("nan"))
    with pytest.raises(ValueError, match="reset_noise_scale: -1 is not a finite number from 0 on"):
        make("Hopper-v5", reset_noise_scale=-1)
    with pytest.raises(ValueError, match=r"healthy_z_range: \(2, 1\) is no range"):
        make("Hopper-v5", healthy_z_range=(2, 1))
    with pytest.raises(TypeError, match=r"healthy_z_range: 2 is not a pair"):
        make("Hopper-v5", healthy_z_range=2)
    with pytest.raises(TypeError, match="terminate_when_unhealthy: 1 is not True or False"):
        make("Hopper-v5", terminate_when_unhealthy=1)
    with pytest.raises(ValueError, match="main_body: 'tail' is no body of Ant-v5"):
        make("Ant-v5", main_body="tail")
    with pytest.raises(TypeError, match=r"main_body: 1.5 is neither"):
        make("Ant-v5", main_body=1.5)
    with pytest.raises(ValueError, match=r"frame_skip: 0 is outside"):
        make("Ant-v5", frame_skip=0)
    with pytest.raises(ValueError, match="num_envs: 0 is outside"):
        make("Ant-v5", 0)
    with pytest.raises(ValueError, match="threads: 0 is outside"):
        make("Ant-v5", threads=0)
    with pytest.raises(ValueError, match="max_episode_steps: 0 is outside"):
        make("Ant-v5", max_episode_steps=0)
    with pytest.raises(ValueError, match="autoreset: 'sometimes' is unknown"):
        make("Ant-v5", autoreset="sometimes")
    with pytest.raises(ValueError, match="seed: -1 is negative"):
        make("Ant-v5", seed=-1)


def test_memory_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastrl.engine.pools.available_memory_bytes", lambda: 10_000_000)

    with pytest.raises(MemoryError, match=r"num_envs: 64 envs need about .* at most \d+ fit"):
        fastrl.MujocoPool("Ant-v5", 64)


def test_bad_actions_are_refused_and_nothing_is_stepped(pool: fastrl.MujocoPool) -> None:
    pool.reset(seed=0)
    before = pool.save_state()
    good = np.zeros((3, 3), dtype=np.float32)
    for value in (np.nan, np.inf):
        bad = good.copy()
        bad[1, 2] = value
        with pytest.raises(ValueError, match=f"step: number 2 of the action for env 1 .Hopper-v5. is {value}"):
            pool.step(bad)
        with pytest.raises(ValueError, match="actions are finite numbers"):
            pool.step(bad.astype(np.float64))
    with pytest.raises(ValueError, match=r"step: actions have shape \(3,\), expected \(3, 3\)"):
        pool.step(np.zeros(3))
    with pytest.raises(TypeError, match="step: actions are float16; expected float32 or float64"):
        pool.step(good.astype(np.float16))
    with pytest.raises(TypeError, match="step: actions are bool"):
        pool.step(good.astype(bool))
    with pytest.raises(ValueError, match="step: actions are not a row of numbers for each env"):
        pool.step([[0.0], [0.0, 1.0], []])
    assert pool.save_state() == before


def test_bad_resets_are_refused(pool: fastrl.MujocoPool) -> None:
    with pytest.raises(RuntimeError, match=r"step: envs \[0, 1, 2\] have not been reset; call reset\(\) first"):
        pool.step(np.zeros((3, 3)))
    with pytest.raises(RuntimeError, match=r"save_state: envs \[0, 1, 2\] have not been reset"):
        pool.save_state()
    with pytest.raises(RuntimeError, match=r"reset: envs \[1, 2\] are left out of reset_mask but have never been"):
        pool.reset(options={"reset_mask": np.array([True, False, False])})
    with pytest.raises(ValueError, match=r"reset: options \['noops'\] are unknown"):
        pool.reset(options={"noops": 1})
    with pytest.raises(TypeError, match="reset_mask must be a numpy array of bool"):
        pool.reset(options={"reset_mask": [True, True, True]})
    with pytest.raises(ValueError, match=r"reset_mask must have shape \(3,\) and at least one True"):
        pool.reset(options={"reset_mask": np.zeros(3, dtype=bool)})
    with pytest.raises(TypeError, match="is not a dict"):
        pool.reset(options=3)


def test_a_step_after_the_end_is_refused_where_nobody_resets() -> None:
    pool = fastrl.MujocoPool("InvertedPendulum-v5", 2, threads=1, autoreset="disabled")
    pool.reset(seed=0)
    actions = np.array([[3.0], [0.0]])
    while not pool.step(actions)[2].any():
        pass
    with pytest.raises(RuntimeError, match=r"step: the episode of env 0 \(InvertedPendulum-v5\) is over"):
        pool.step(actions)


def test_a_closed_pool_says_so(pool: fastrl.MujocoPool) -> None:
    obs, _ = pool.reset(seed=0)
    kept = obs.copy()
    pool.close()
    pool.close()

    for call in (pool.reset, pool.save_state, pool.observations, lambda: pool.step(np.zeros((3, 3)))):
        with pytest.raises(RuntimeError, match="the pool is closed; make a new one"):
            call()
    assert np.array_equal(obs, kept)


def native_threads() -> int:
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return sum(name.startswith("fastrl-mj") for name in names)


def test_closing_and_collecting_end_every_thread() -> None:
    before = native_threads()
    closed = fastrl.MujocoPool("Swimmer-v5", 4, threads=2)
    closed.reset()
    during = native_threads()
    closed.close()
    dropped = fastrl.MujocoPool("Swimmer-v5", 4, threads=2)
    dropped.reset()
    del dropped

    assert (during, native_threads()) == (before + 1, before)


@pytest.mark.parametrize("threads", [2, 5])
def test_a_caller_that_dawdles_finds_its_workers_awake_or_wakes_them(threads: int, session_seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more threads than cores, which sleep at once
        pool = fastrl.MujocoPool("InvertedPendulum-v5", 6, threads=threads)
    envs = fastrl.MujocoPool("InvertedPendulum-v5", 6, threads=1)
    assert_same(pool.reset(seed=0), envs.reset(seed=0))
    rng = np.random.default_rng(session_seed)
    for action in random_actions(pool.action_space, 700, 0):
        time.sleep(rng.choice([0, 0, 1e-5, 2e-4, 6e-4]))
        assert_same(pool.step(action), envs.step(action))


def test_two_threads_in_one_pool_are_refused() -> None:
    pool = fastrl.MujocoPool("Ant-v5", 64, threads=1)
    pool.reset(seed=0)
    actions = np.zeros((64, 8))
    assert "step: another thread is inside a call of this pool" in refusal_of_two_threads(lambda: pool.step(actions))
    pool.step(actions)  # and it is none the worse


def test_closing_while_another_thread_steps() -> None:
    pool = fastrl.MujocoPool("Ant-v5", 32, threads=2)
    pool.reset(seed=0)
    ended: list[str] = []

    def step() -> None:
        try:
            while True:
                pool.step(np.zeros((32, 8)))
        except RuntimeError as error:
            ended.append(str(error))

    thread = threading.Thread(target=step)
    thread.start()
    time.sleep(0.1)
    pool.close()
    thread.join(timeout=20)

    assert ended
    assert "closed" in ended[0]


def test_an_interrupt_ends_a_loop_at_once() -> None:
    pool = fastrl.MujocoPool("Hopper-v5", 4, threads=2)
    pool.reset(seed=0)

    def step_until(end: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        while time.monotonic() < end:
            pool.step(np.zeros((4, 3)))

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            step_until(began + 20)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 5
    pool.step(np.zeros((4, 3)))


FORK = """
import os, sys, warnings, numpy as np, fastrl
warnings.simplefilter("ignore")
pool = fastrl.MujocoPool("Hopper-v5", 2, threads=2)
pool.reset(seed=0)
read, write = os.pipe()
child = os.fork()
if child == 0:
    said = []
    for call in (lambda: pool.step(np.zeros((2, 3))), pool.reset, pool.save_state):
        try:
            call()
        except RuntimeError as error:
            said.append(str(error))
    own = fastrl.MujocoPool("Hopper-v5", 2, threads=2)
    own.reset(seed=0)
    own.step(np.zeros((2, 3)))
    os.write(write, "\\n".join(said).encode())
    pool.close()
    del pool
    sys.exit(0)
print(os.waitpid(child, 0)[1])
print(os.read(read, 10000).decode())
pool.step(np.zeros((2, 3)))
"""


def test_a_forked_child_is_told_to_make_its_own() -> None:
    root = str(Path(fastrl.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-P", "-c", FORK],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": root},
    )
    lines = run.stdout.splitlines()

    assert lines[0] == "0"
    for line, operation in zip(lines[1:], ("step", "reset", "save_state"), strict=True):
        assert line.startswith(f"{operation}: this pool was made by process")
        assert line.endswith("make a pool here")


def test_close_waits_for_the_thread_that_is_inside_a_call() -> None:
    """Else what it works on, and Python itself, could be gone when it comes back."""
    pool = fastrl.MujocoPool("Hopper-v5", num_envs=4, threads=1, frame_skip=1000)
    pool.reset(seed=0)
    actions = pool.action_space.sample()
    ended: list[float] = []

    def step() -> None:
        pool._pool.step(actions)
        ended.append(time.monotonic())

    thread = threading.Thread(target=step)
    thread.start()
    time.sleep(0.05)  # it is inside
    pool.close()
    closed = time.monotonic()
    thread.join(30)
    assert ended
    assert ended[0] < closed + 0.1
    with pytest.raises(RuntimeError, match="step: the pool is closed; make a new one"):
        pool._pool.step(actions)


def test_a_state_with_another_number_of_starts_drawn_ahead_is_told_from_a_damaged_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with contextlib.closing(fastrl.MujocoPool("Hopper-v5", 1, threads=1)) as pool:
        pool.reset(seed=0)
        (state,) = pool.save_state()
        monkeypatch.setattr(mujoco_pool, "_STARTS_EACH", 5)
        with pytest.raises(ValueError, match="the state was saved by a version of fastrl that keeps other things"):
            pool.load_state([state])
        with pytest.raises(ValueError, match="the state is damaged"):
            pool.load_state([state[1:]])


def test_a_state_saved_under_any_other_setting_is_refused() -> None:
    for env_id, settings in SETTINGS.items():
        with contextlib.closing(fastrl.MujocoPool(env_id, 1, threads=1)) as pool:
            pool.reset(seed=0)
            saved = pool.save_state()
        for name, value in settings.items():
            with (
                contextlib.closing(fastrl.MujocoPool(env_id, 1, threads=1, **{name: value})) as other,
                pytest.raises(ValueError, match="the state was saved under other rules"),
            ):
                other.load_state(saved)


def test_a_pool_says_when_it_cuts_as_a_registered_env_does() -> None:
    for given, limit in ((None, 1000), (70, 70)):
        with contextlib.closing(fastrl.MujocoPool("InvertedPendulum-v5", 1, max_episode_steps=given)) as pool:
            assert pool.spec is not None
            assert (pool.spec.id, pool.spec.max_episode_steps) == ("InvertedPendulum-v5", limit)
