"""The pool's faces: gymnasium's vector API, what is beyond it, and every way of using it wrongly."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector as vector_wrappers
from two_threads import refusal_of_two_threads

import fastrl
from fastrl.engine import native

CORE = native.core


@pytest.fixture
def pool() -> Iterator[fastrl.AtariPool]:
    made = fastrl.AtariPool("breakout", num_envs=3, threads=2, protocol="sb3")
    yield made
    made.close()


def play(pool: fastrl.AtariPool, steps: int, seed: int = 0) -> list[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(seed)
    results = []
    for _ in range(steps):
        obs, reward, terminated, truncated, info = pool.step(
            rng.integers(pool.single_action_space.n, size=pool.num_envs)
        )
        results.append((obs, reward, terminated, truncated, info["lives"]))
    return results


# ---- gymnasium's API


def test_spaces_and_shapes_are_gymnasiums(pool: fastrl.AtariPool) -> None:
    obs, info = pool.reset(seed=1)

    assert pool.observation_space.contains(obs)
    assert pool.single_observation_space.shape == (4, 84, 84)
    assert pool.action_space.contains(pool.action_space.sample())
    assert pool.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert info["lives"].tolist() == [5, 5, 5]
    assert info["_lives"].tolist() == [True] * 3
    obs, reward, terminated, truncated, info = pool.step(pool.action_space.sample())
    assert (obs.dtype, reward.dtype, terminated.dtype, truncated.dtype) == (np.uint8, np.float64, np.bool_, np.bool_)
    assert (info["frame_number"] > info["episode_frame_number"] - 1).all()


def test_make_vec_finds_the_pool_under_its_registered_id() -> None:
    envs = gymnasium.make_vec("fastrl/MsPacman-v0", num_envs=2, protocol="nature", threads=1)
    obs, _ = envs.reset(seed=0)

    assert isinstance(envs.unwrapped, fastrl.AtariPool)
    assert envs.spec is not None
    assert envs.spec.id == "fastrl/MsPacman-v0"
    assert envs.unwrapped.protocol.name == "nature"
    assert obs.shape == (2, 4, 84, 84)
    envs.close()


def test_gymnasium_says_how_a_pool_is_made_where_it_is_asked_for_single_envs() -> None:
    message = r"call gymnasium.make_vec\('fastrl/MsPacman-v0', num_envs=1\)"
    with pytest.raises(gymnasium.error.Error, match=message):
        gymnasium.make("fastrl/MsPacman-v0")
    with pytest.raises(gymnasium.error.Error, match=message):
        gymnasium.make_vec("fastrl/MsPacman-v0", num_envs=2, vectorization_mode="sync")


def test_gymnasiums_vector_wrappers_work_on_it() -> None:
    envs: gymnasium.vector.VectorEnv = fastrl.AtariPool("pong", num_envs=2, max_frames=240, reward="raw", threads=1)
    envs = vector_wrappers.RecordEpisodeStatistics(envs)
    envs = vector_wrappers.ClipReward(envs, -1.0, 1.0)
    envs = vector_wrappers.TransformObservation(
        envs, lambda obs: obs[:, -1:], single_observation_space=gymnasium.spaces.Box(0, 255, (1, 84, 84), np.uint8)
    )
    envs = vector_wrappers.NormalizeReward(envs)
    obs, _ = envs.reset(seed=3)
    episodes = []
    for _ in range(130):
        obs, reward, _, _, info = envs.step(envs.action_space.sample())
        if "episode" in info:
            episodes += info["episode"]["l"][info["_episode"]].tolist()

    assert obs.shape == (2, 1, 84, 84)
    assert np.isfinite(reward).all()
    assert len(episodes) >= 2
    envs.close()


def test_somebody_elses_training_loop_runs_unchanged() -> None:
    """A rollout loop as the wide-spread single-file trainers write it for gymnasium.vector, masks and all."""
    envs = gymnasium.make_vec("fastrl/Breakout-v0", num_envs=4, threads=2, max_frames=400)
    next_obs, _ = envs.reset(seed=1)
    next_done = np.zeros(4, dtype=np.float32)
    rng = np.random.default_rng(0)
    storage = np.zeros((32, 4, *envs.single_observation_space.shape), dtype=np.uint8)
    dones = np.zeros((32, 4), dtype=np.float32)
    for _ in range(4):
        for step in range(32):
            storage[step], dones[step] = next_obs, next_done
            next_obs, _, terminations, truncations, infos = envs.step(rng.integers(4, size=4))
            next_done = np.logical_or(terminations, truncations).astype(np.float32)
            assert "final_info" not in infos

    assert dones.sum() > 0
    assert storage.any()
    envs.close()


def test_observations_are_the_callers_to_keep(pool: fastrl.AtariPool) -> None:
    pool.reset(seed=0)
    results = play(pool, 40)
    copies = [r[0].copy() for r in results]
    play(pool, 40, seed=1)

    assert all(np.array_equal(r[0], copy) for r, copy in zip(results, copies, strict=True))


def test_buffers_are_used_again_once_nobody_holds_them(pool: fastrl.AtariPool) -> None:
    pool.reset(seed=0)
    addresses = set()
    for _ in range(30):
        obs = pool.step(np.zeros(3, dtype=np.int64))[0]
        addresses.add(obs.ctypes.data)
        del obs

    assert len(addresses) <= 3


def test_observations_outlive_their_pool() -> None:
    pool = fastrl.AtariPool("pong", num_envs=2, threads=1)
    obs, _ = pool.reset(seed=0)
    copy = obs.copy()
    pool.close()
    del pool
    gc.collect()

    assert np.array_equal(obs, copy)


def test_a_given_buffer_is_filled_in_place(pool: fastrl.AtariPool) -> None:
    twin = fastrl.AtariPool("breakout", num_envs=3, threads=1)
    buffer = np.empty((3, 4, 84, 84), dtype=np.uint8)
    expected, _ = twin.reset(seed=5)
    obs, _ = pool.reset(seed=5, out=buffer)

    assert obs is buffer
    assert np.array_equal(buffer, expected)
    for _ in range(20):
        obs, *_ = pool.step([1, 2, 3], out=buffer)
        assert obs is buffer
        assert np.array_equal(buffer, twin.step([1, 2, 3])[0])
    twin.close()


def test_a_torch_tensor_can_be_the_buffer(pool: fastrl.AtariPool) -> None:
    tensor = torch.empty((3, 4, 84, 84), dtype=torch.uint8)
    obs, _ = pool.reset(seed=5, out=tensor)

    assert obs is tensor
    assert np.array_equal(tensor.numpy(), pool.observations())


def test_a_masked_reset_leaves_the_others_as_they_are(pool: fastrl.AtariPool) -> None:
    pool.reset(seed=0)
    play(pool, 20)
    before = pool.observations().copy()
    frames = pool.step([0, 0, 0])[4]["episode_frame_number"]
    before = pool.observations().copy()
    obs, info = pool.reset(options={"reset_mask": np.array([False, True, False])})

    assert np.array_equal(obs[[0, 2]], before[[0, 2]])
    assert not np.array_equal(obs[1], before[1])
    assert info["_lives"].tolist() == [False, True, False]
    assert info["episode_frame_number"][[0, 2]].tolist() == frames[[0, 2]].tolist()
    assert info["episode_frame_number"][1] < frames[1]


def test_a_masked_reset_keeps_the_pending_resets_of_the_others() -> None:
    pool = fastrl.AtariPool("pong", num_envs=2, max_frames=100, threads=1)
    pool.reset(seed=0)
    while True:
        _, _, _, truncated, info = pool.step([0, 0])
        if truncated.any():
            break
    waiting = int(np.flatnonzero(truncated)[0])
    other = 1 - waiting
    mask = np.array([env == other for env in range(2)])
    pool.reset(options={"reset_mask": mask})
    _, reward, _, truncated, info = pool.step([2, 2])

    assert info["episode_frame_number"][waiting] <= 40  # it was reset by this step
    assert reward[waiting] == 0
    assert not truncated[waiting]
    pool.close()


def test_scheduled_noops_are_played_in_order_autoresets_included() -> None:
    pool = fastrl.AtariPool("pong", num_envs=2, max_frames=80, threads=1, protocol="nature")
    _, info = pool.reset(seed=0, options={"noops": [[3, 7, 11], [30, 1, 2]]})
    starts = [info["episode_frame_number"].tolist()]
    pending = np.zeros(2, dtype=bool)
    seen: list[list[int]] = [[], []]
    for _ in range(80):
        _, _, terminated, truncated, info = pool.step([0, 0])
        for env in np.flatnonzero(pending):
            seen[env].append(int(info["episode_frame_number"][env]))
        pending = terminated | truncated

    assert starts == [[3, 30]]
    assert seen[0][:2] == [7, 11]
    assert seen[1][:2] == [1, 2]
    pool.close()


def test_the_full_games_return_is_reported_beside_the_life_split_episodes() -> None:
    pool = fastrl.AtariPool("breakout", num_envs=4, threads=2)
    _, info = pool.reset(seed=0)
    rng = np.random.default_rng(0)
    games = life_losses = 0
    for _ in range(900):
        _, _, terminated, _, info = pool.step(rng.integers(4, size=4))
        assert "episode" not in info
        life_losses += int((terminated & (info["lives"] > 0)).sum())
        if "game_return" in info:
            mask = info["_game_return"]
            assert (info["game_frames"][mask] > info["game_steps"][mask]).all()
            assert (info["game_return"][mask] >= 0).all()
            assert (info["game_return"][~mask] == 0).all()
            games += int(mask.sum())

    assert games >= 4
    assert life_losses > games
    pool.close()


@pytest.mark.parametrize("mode", ["same_step", AutoresetMode.SAME_STEP, "SameStep"])
def test_same_step_gives_the_last_observation_beside_the_first(mode: str | AutoresetMode) -> None:
    pool = fastrl.AtariPool("pong", num_envs=2, max_frames=100, threads=1, autoreset=mode)
    pool.reset(seed=0)
    for _ in range(40):
        obs, _, _, truncated, info = pool.step([2, 3])
        if truncated.any():
            break
    env = int(np.flatnonzero(truncated)[0])

    assert info["_final_obs"].tolist() == truncated.tolist()
    assert info["final_obs"][env].shape == (4, 84, 84)
    assert info["final_obs"][1 - env] is None or truncated.all()
    assert not np.array_equal(info["final_obs"][env], obs[env])
    assert info["final_info"]["episode_frame_number"][env] == 100
    assert info["episode_frame_number"][env] < 100
    assert info["game_frames"][env] == 100
    masks = [info["_final_obs"], info["_final_info"], *(m for k, m in info["final_info"].items() if k[0] == "_")]
    masks[0][:] = False
    assert len(masks) == 5
    assert all(mask.any() for mask in masks[1:])
    pool.close()


def test_with_autoreset_disabled_a_finished_env_must_be_reset() -> None:
    pool = fastrl.AtariPool("pong", num_envs=2, max_frames=60, threads=1, autoreset="disabled")
    pool.reset(seed=0)
    truncated = np.zeros(2, dtype=bool)
    while not truncated.any():
        truncated = pool.step([0, 0])[3]
    env = int(np.flatnonzero(truncated)[0])

    with pytest.raises(RuntimeError, match=rf"episode of env {env} \(pong\) is over and autoreset is disabled"):
        pool.step([0, 0])
    pool.reset(options={"reset_mask": truncated})
    pool.step([0, 0])
    pool.close()


def test_equal_seeds_repeat_and_different_seeds_differ() -> None:
    runs = []
    for seed in (7, 7, 8):
        pool = fastrl.AtariPool("space_invaders", num_envs=2, sticky=0.25, threads=2)
        pool.reset(seed=seed)
        runs.append(np.concatenate([r[0] for r in play(pool, 60)]))
        pool.close()

    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_the_constructors_seed_is_that_of_the_first_reset() -> None:
    a, b = (fastrl.AtariPool("pong", num_envs=2, threads=1, seed=seed) for seed in (11, 0))

    assert np.array_equal(a.reset()[0], b.reset(seed=11)[0])
    assert not np.array_equal(a.reset()[0], b.reset(seed=11)[0])  # a's generators went on


def test_render_and_screens_show_the_raw_colours() -> None:
    pool = fastrl.AtariPool("pong", num_envs=2, threads=1, render_mode="rgb_array")
    pool.reset(seed=0)
    screens = pool.screens()

    assert screens.shape == (2, 210, 160, 3)
    assert np.array_equal(pool.render()[1], screens[1])
    assert len(np.unique(screens.reshape(-1, 3), axis=0)) >= 3
    pool.close()


def test_the_results_of_an_interrupted_step_are_in_its_buffer() -> None:
    pool = fastrl.AtariPool("pong", num_envs=2, threads=1, frame_skip=500, max_frames=0)
    pool.reset(seed=0)
    buffer = np.zeros((2, 4, 84, 84), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "_pool", InterruptedRecv(pool._pool))
        with pytest.raises(KeyboardInterrupt):
            pool.step([0, 0], out=buffer)
    with pytest.raises(RuntimeError, match="has not been received"):
        pool.step([0, 0], out=np.empty_like(buffer))
    obs, *_ = pool.recv()

    assert obs is buffer
    assert np.array_equal(buffer, pool.observations())
    held = sys.getrefcount(buffer)
    pool.step([0, 0], out=buffer)
    assert sys.getrefcount(buffer) == held
    pool.close()


def test_a_buffer_lives_until_its_results_are_received() -> None:
    pool = fastrl.AtariPool("pong", num_envs=2, threads=1)
    pool.reset(seed=0)

    def interrupted_step() -> weakref.ref[np.ndarray]:
        buffer = np.zeros((2, 4, 84, 84), dtype=np.uint8)
        with interrupted_around(pool, "send_actions", done=True):
            pool.step([0, 0], out=buffer)
        return weakref.ref(buffer)

    watched = interrupted_step()
    gc.collect()
    assert watched() is not None
    assert pool.recv()[0] is watched()
    gc.collect()
    assert watched() is None
    watched = interrupted_step()
    pool.reset()
    gc.collect()
    assert watched() is None
    watched = interrupted_step()
    pool.close()
    gc.collect()
    assert watched() is None


class InterruptedRecv:
    """The native pool, but Ctrl-C comes while it is waited for."""

    def __init__(self, pool: CORE.EnvPool) -> None:
        self.send_actions = pool.send_actions

    def recv(self, timeout_s: float, operation: str) -> None:
        raise KeyboardInterrupt


def test_a_pool_without_a_seed_draws_one() -> None:
    observations = []
    for seed in (None, None, [None]):
        pool = fastrl.AtariPool("pong", 1, seed=seed, sticky=0.25, threads=1)
        pool.reset()
        observations.append(np.concatenate([r[0] for r in play(pool, 60)]))
        pool.close()

    assert not np.array_equal(observations[0], observations[1])


def test_what_a_caller_does_to_an_info_stays_with_him(pool: fastrl.AtariPool) -> None:
    mask = np.array([True, True, True])
    pool.reset(seed=0)
    _, info = pool.reset(options={"reset_mask": mask})
    info["env_id"] += 1
    info["_lives"][:] = False

    assert mask.all()
    assert info["_frame_number"].all()
    stepped = pool.step([0, 0, 0])[4]
    assert stepped["env_id"].tolist() == [0, 1, 2]
    stepped["_lives"][:] = False
    assert stepped["_frame_number"].all()
    assert pool.step([0, 0, 0])[4]["_lives"].all()


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("noop_max", -1, ValueError),
        ("frame_skip", 0, ValueError),
        ("reward", "rwa", ValueError),
        ("life_loss", "x", ValueError),
        ("pooling", "x", ValueError),
        ("grey", "x", ValueError),
        ("stack_padding", "x", ValueError),
        ("max_frames", 2**40, ValueError),
        ("fire_at_reset", "yes", TypeError),
        ("sticky", "a", TypeError),
    ],
)
def test_a_protocol_of_ones_own_is_checked(field: str, value: object, error: type[Exception]) -> None:
    own = dataclasses.replace(fastrl.protocol("sb3"), name="mine", **{field: value})
    with pytest.raises(error, match=field):
        fastrl.AtariPool("pong", protocol=own)


def test_a_protocol_of_ones_own_is_played() -> None:
    own = dataclasses.replace(fastrl.protocol("sb3"), name="mine", frame_skip=2)
    pool = fastrl.AtariPool("pong", protocol=own, max_frames=500)
    pool.reset(seed=0)

    assert pool.rule_changes() == {"max_frames": (108_000, 500)}
    pool.close()


@pytest.mark.parametrize("timeout_s", [float("nan"), -1, float("inf"), "a"])
def test_wrong_timeouts_are_refused(pool: fastrl.AtariPool, timeout_s: object) -> None:
    pool.reset(seed=0)
    pool.send([0, 0, 0])

    with pytest.raises(ValueError, match="timeout_s"):
        pool.recv(timeout_s=timeout_s)  # type: ignore[arg-type]
    pool.recv()


def test_a_refused_buffer_costs_no_results(pool: fastrl.AtariPool) -> None:
    pool.reset(seed=0)
    pool.send([0, 0, 0])
    with pytest.raises(ValueError, match="out: expected"):
        pool.recv(out=np.empty((1, 4, 84, 84), dtype=np.uint8))
    with pytest.raises(TypeError, match="out: list is neither a numpy array nor a torch tensor"):
        pool.recv(out=[1, 2])

    assert pool.recv()[0].shape == (3, 4, 84, 84)


def test_a_sink_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="sink: it is for 1 envs, the pool has 8"):
        fastrl.AtariPool("pong", 8, sink=CORE.RecordingSink(1))
    with pytest.raises(TypeError, match="sink: str is not a FrameSink"):
        fastrl.AtariPool("pong", 8, sink="x")


def test_states_of_short_games_stay_small() -> None:
    pool = fastrl.AtariPool("pong", num_envs=1, threads=1, max_frames=60)
    pool.reset(seed=0)
    play(pool, 500)
    sizes = []
    for _ in range(4):
        play(pool, 300)
        sizes.append(len(pool.save_state()[0]))

    assert max(sizes) - min(sizes) < 20_000
    pool.close()


# ---- send and recv


def test_sub_batches_return_every_env_and_say_whose_results_they_are() -> None:
    pool = fastrl.AtariPool("pong", num_envs=6, batch_size=2, threads=2)
    obs, _ = pool.reset(seed=0)
    assert obs.shape[0] == 6
    pool.send(np.zeros(6, dtype=np.int32))
    counts = np.zeros(6, dtype=int)
    for _ in range(60):
        obs, reward, _, _, info = pool.recv()
        assert obs.shape == (2, 4, 84, 84)
        assert reward.shape == (2,)
        counts[info["env_id"]] += 1
        pool.send(np.zeros(2, dtype=np.int64), info["env_id"])

    assert counts.sum() == 120
    assert counts.min() > 0
    pool.close()


def test_recv_can_copy_into_a_buffer() -> None:
    pool = fastrl.AtariPool("pong", num_envs=2, batch_size=1, threads=1)
    pool.reset(seed=0)
    pool.send([0, 0])
    buffer = np.empty((1, 4, 84, 84), dtype=np.uint8)
    obs, *_ = pool.recv(out=buffer)

    assert obs is buffer
    assert buffer.any()
    pool.close()


def test_a_sink_gets_every_frame_once_and_in_order() -> None:
    sink = CORE.RecordingSink(2)
    pool = fastrl.AtariPool("breakout", num_envs=2, threads=2, sink=sink, autoreset="same_step")
    obs, _ = pool.reset(seed=0)
    expected: list[list[np.ndarray]] = [[obs[env, -1]] for env in range(2)]
    for result in range(150):
        obs, _, terminated, truncated, info = pool.step([result % 4, (result + 1) % 4])
        for env in range(2):
            if terminated[env] or truncated[env]:
                expected[env].append(info["final_obs"][env][-1])
            expected[env].append(obs[env, -1])
    for env in range(2):
        entries = sink.entries(env)
        assert len(entries) == len(expected[env])
        assert all(np.array_equal(entry[0], frame) for entry, frame in zip(entries, expected[env], strict=True))
        starts = [place for place, entry in enumerate(entries) if entry[1]]
        assert starts[0] == 0
        assert all(entries[place - 1][4] or entries[place - 1][5] for place in starts[1:])
    pool.close()


def test_with_stacks_off_frames_go_to_the_sink_only() -> None:
    sink = CORE.RecordingSink(1)
    pool = fastrl.AtariPool("pong", num_envs=1, threads=1, sink=sink, stacks=False)
    obs, _ = pool.reset(seed=0)

    assert obs is None
    assert pool.step([0])[0] is None
    assert len(sink.entries(0)) == 2
    pool.close()


# ---- bad input: refused with the value, the range and the remedy


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        ([0, 9, 0], ValueError, r"action 9 .*env 1.*breakout.* is outside \[0, 4\)|action 9 at place 1"),
        ([0, -1, 0], ValueError, r"action -1 .*outside \[0, 4\)"),
        (np.array([0, 2**32, 0]), ValueError, r"action 4294967296 .*outside \[0, 4\)"),
        (
            np.array([0, 2**63, 0], dtype=np.uint64),
            ValueError,
            r"action 9223372036854775808 for env 1 \(breakout\) is out",
        ),
        ([0, 0, 2**70], ValueError, r"step: action 1180591620717411303424 for env 2 \(breakout\) is outside \[0, 4\)"),
        ([0, 2**63, -1], ValueError, r"step: action 9223372036854775808 for env 1 \(breakout\) is outside \[0, 4\)"),
        ([[0], [0, 1], [0]], ValueError, "step: actions are not one whole number for each env"),
        ([0, 0], ValueError, r"actions have shape \(2,\), expected \(3,\)"),
        ([[0], [0], [0]], ValueError, r"shape \(3, 1\)"),
        ([0.0, 1.0, 0.0], TypeError, "actions are float64; expected whole numbers"),
        ([True, False, True], TypeError, "actions are bool"),
        (["a", "b", "c"], TypeError, "expected whole numbers"),
    ],
)
def test_wrong_actions_are_refused_before_anything_is_sent(
    pool: fastrl.AtariPool, actions: object, error: type[Exception], message: str
) -> None:
    pool.reset(seed=0)
    before = pool.observations().copy()

    with pytest.raises(error, match=message):
        pool.step(actions)
    assert np.array_equal(pool.observations(), before)
    pool.step([0, 1, 2])


@pytest.mark.parametrize(
    ("env_ids", "error", "message"),
    [
        ([0, 0], ValueError, r"env id 0 is given twice in \[0, 0\]"),
        ([0, 3], IndexError, r"env id 3 is outside \[0, 3\)"),
        ([-1, 0], IndexError, r"env id -1 is outside \[0, 3\)"),
        ([0.5, 1.0], ValueError, "expected a list of whole numbers"),
        ([], ValueError, "expected a list of whole numbers"),
    ],
)
def test_wrong_env_ids_are_refused(
    pool: fastrl.AtariPool, env_ids: list[float], error: type[Exception], message: str
) -> None:
    pool.reset(seed=0)

    with pytest.raises(error, match=message):
        pool.send(np.zeros(len(env_ids), dtype=np.int64), env_ids)


def test_calls_in_the_wrong_order_say_what_to_do() -> None:
    pool = fastrl.AtariPool("pong", num_envs=2, threads=1)
    with pytest.raises(RuntimeError, match=r"env 0 \(pong\) has not been reset; call reset\(\) first"):
        pool.step([0, 0])
    with pytest.raises(RuntimeError, match=r"recv: nothing was sent; call send\(\) or reset\(\) first"):
        pool.recv()
    with pytest.raises(RuntimeError, match="have not been reset"):
        pool.screens()
    with pytest.raises(RuntimeError, match="never been reset"):
        pool.reset(options={"reset_mask": np.array([True, False])})
    pool.reset(seed=0)
    with pytest.raises(RuntimeError, match="nothing was sent"):
        pool.recv()
    pool.send([0], [1])
    with pytest.raises(RuntimeError, match=r"recv: 1 envs were sent, but a batch needs 2; send more"):
        pool.recv()
    with pytest.raises(RuntimeError, match=r"env 1 \(pong\) was sent before and its result has not been received"):
        pool.send([0], [1])
    with pytest.raises(RuntimeError, match="not been received"):
        pool.save_state()
    pool.send([0], [0])
    pool.recv()
    pool.close()
    for call in (lambda: pool.step([0, 0]), pool.reset, pool.recv, lambda: pool.send([0, 0]), pool.screens):
        with pytest.raises(RuntimeError, match="the pool is closed; make a new one"):
            call()
    pool.close()  # again is fine


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"env_id": "braekout"}, ValueError, r"'braekout' is not an Atari game.*did you mean 'breakout'"),
        ({"env_id": "Breakout-v4"}, ValueError, "use 'BreakoutNoFrameskip-v4'"),
        ({"env_id": "combat"}, ValueError, "no single-player mode"),
        (
            {"env_id": "backgammon"},
            ValueError,
            "begins games with no-ops, but the actions that backgammon uses have none",
        ),
        ({"env_id": ""}, ValueError, "is not an Atari game"),
        ({"env_id": "xyz"}, ValueError, r"some are breakout, ms_pacman and pong \(all 1\d\d: .*fastrl\.games\(\)"),
        ({"env_id": 3}, TypeError, "expected a name"),
        ({"protocol": "natur"}, ValueError, "did you mean 'nature'"),
        ({"num_envs": 0}, ValueError, r"num_envs: 0 is outside \[1, 65536\]"),
        ({"num_envs": 2.5}, TypeError, "num_envs: 2.5 is not a whole number"),
        ({"threads": 0}, ValueError, r"threads: 0 is outside \[1"),
        ({"batch_size": 3, "num_envs": 2}, ValueError, r"batch_size: 3 is outside \[1, 2\]"),
        ({"frame_skip": 0}, ValueError, r"frame_skip: 0 is outside \[1"),
        ({"stack": 0}, ValueError, r"stack: 0 is outside \[1"),
        ({"sticky": 1.5}, ValueError, r"sticky: 1.5 is outside \[0, 1\)"),
        ({"noop_max": -1}, ValueError, r"noop_max: -1 is outside \[0"),
        ({"autoreset": "never"}, ValueError, "autoreset: 'never' is unknown"),
        ({"life_loss": "ends"}, ValueError, "life_loss: 'ends' is unknown"),
        ({"reward": "clip"}, ValueError, "reward: 'clip' is unknown; did you mean 'clipped'"),
        ({"full_actions": 1}, TypeError, "full_actions: 1 is not True or False"),
        ({"mode": 99}, ValueError, r"mode: 99 is not one that breakout has: \["),
        ({"difficulty": 7}, ValueError, "difficulty: 7 is not one that breakout has"),
        ({"cpu_path": "sse9"}, ValueError, "cpu_path: 'sse9' is not among what this processor can run"),
        ({"render_mode": "human"}, ValueError, "render_mode: 'human' is not one of"),
        ({"seed": -1}, ValueError, "seed: -1 is negative"),
        ({"seed": [1, 2, 3]}, ValueError, "got 3 seeds for 1 envs"),
        ({"seed": 0.5}, TypeError, "seed"),
        ({"cached_resets": True, "sticky": 0.25}, ValueError, "not proved"),
        ({"stacks": False}, ValueError, "no sink is given"),
        ({"stacks": 0}, TypeError, "stacks: 0 is not True or False"),
        ({"seed": np.array(3)}, TypeError, r"seed: an array of shape \(\) is neither"),
        ({"env_id": "breakout\n"}, ValueError, "is not an Atari game"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fastrl.AtariPool(**{"env_id": "breakout", **arguments})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask": 1}, ValueError, r"options \['mask'\] are unknown"),
        ({"reset_mask": [True, False, True]}, TypeError, "must be a numpy array of bool"),
        ({"reset_mask": np.array([1, 0, 1])}, TypeError, "must be a numpy array of bool"),
        ({"reset_mask": np.zeros(3, dtype=bool)}, ValueError, "at least one True"),
        ({"reset_mask": np.ones(2, dtype=bool)}, ValueError, r"shape \(3,\)"),
        ({"noops": [1, 2]}, ValueError, "noops for 2 envs given"),
        ({"noops": 99}, ValueError, r"noops: 99 is outside \[0, 60\]"),
        ({"noops": [[1], [2], [-1]]}, ValueError, "noops: -1"),
        ({"noops": 3.5}, TypeError, "noops 3.5 is neither a count"),
        ({"noops": np.array(3)}, TypeError, r"noops array\(3\) is neither a count"),
        ({"noops": "abc"}, TypeError, "noops 'abc' is neither a count"),
        ({"noops": [None, 3, 3]}, TypeError, "noops: None is not a whole number"),
    ],
)
def test_wrong_reset_options_are_refused(
    pool: fastrl.AtariPool, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pool.reset(options=options)


@pytest.mark.parametrize(
    "buffer",
    [
        np.empty((3, 4, 84, 84), dtype=np.float32),
        np.empty((2, 4, 84, 84), dtype=np.uint8),
        np.empty((3, 4, 84, 168), dtype=np.uint8)[..., ::2],
        np.frombuffer(bytes(3 * 4 * 84 * 84), dtype=np.uint8).reshape(3, 4, 84, 84),
    ],
    ids=["dtype", "shape", "strides", "read-only"],
)
def test_wrong_buffers_are_refused(pool: fastrl.AtariPool, buffer: np.ndarray) -> None:
    with pytest.raises(ValueError, match="out: "):
        pool.reset(seed=0, out=buffer)


def test_an_absent_cartridge_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))

    with pytest.raises(FileNotFoundError, match=r"cartridge of pong is missing or damaged.*unset ALE_ROMS_DIR"):
        fastrl.AtariPool("pong")


# ---- faults


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.filterwarnings("ignore:AtariPool")
def test_a_failure_in_a_worker_reaches_the_caller_within_a_second(step: int, threads: int) -> None:
    pool = fastrl.AtariPool("pong", num_envs=4, threads=threads, _fail_at=(2, step))

    def use() -> None:
        pool.reset(seed=0)
        for _ in range(10):
            last[0] = time.monotonic()
            pool.step([0, 0, 0, 0])

    last = [time.monotonic()]
    operation = "reset" if step == 0 else "step"
    with pytest.raises(
        RuntimeError, match=rf"^{operation}: env 2 \(pong\), step {step}, .*a failure that a test asked for"
    ):
        use()
    assert time.monotonic() - last[0] < 2.0  # loading four cartridges is part of the first
    for call in (lambda: pool.step([0, 0, 0, 0]), pool.save_state, pool.screens, lambda: pool.in_flight):
        with pytest.raises(RuntimeError, match="the pool closed when an env failed"):
            call()
    pool.close()


def test_a_failure_with_sub_batches_reaches_recv() -> None:
    pool = fastrl.AtariPool("pong", num_envs=4, batch_size=2, threads=2, _fail_at=(1, 3))
    pool.reset(seed=0)
    pool.send([0, 0, 0, 0])

    def use() -> None:
        for _ in range(50):
            info = pool.recv()[4]
            pool.send([0, 0], info["env_id"])

    with pytest.raises(RuntimeError, match=r"env 1 \(pong\), step 3"):
        use()
    pool.close()


class Interrupted(Exception):
    pass


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """An exception out of a signal handler, as Ctrl-C is one."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with pytest.raises(Interrupted):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def shown_in(pool: fastrl.AtariPool) -> np.ndarray:
    """The observations of some steps."""
    actions = np.random.default_rng(0).integers(pool.num_actions, size=(40, pool.num_envs))
    return np.stack([pool.step(row)[0] for row in actions])


@pytest.mark.parametrize("then", ["reset", "recv"])
def test_an_interrupted_reset_can_be_made_good(then: str) -> None:
    # Seeding six envs on one thread loads six cartridges: more than half a second.
    undisturbed = fastrl.AtariPool("pong", 6, threads=1, seed=5)
    expected, _ = undisturbed.reset()
    pool = fastrl.AtariPool("pong", 6, threads=1, seed=5)
    with interrupted_after(0.1):
        pool.reset()
    obs = pool.reset()[0] if then == "reset" else pool.recv()[0]

    assert np.array_equal(obs, expected)
    assert np.array_equal(shown_in(pool), shown_in(undisturbed))
    assert len(pool.save_state()) == 6
    pool.reset(options={"reset_mask": np.array([True] + [False] * 5)})
    for made in (pool, undisturbed):
        made.close()


def test_an_interrupted_reset_of_some_envs_can_be_made_good() -> None:
    mask = np.array([True] * 5 + [False])
    shown = []
    for interrupt in (False, True):
        pool = fastrl.AtariPool("pong", 6, threads=1)
        pool.reset(seed=1)
        if interrupt:
            with interrupted_after(0.1):
                pool.reset(seed=9, options={"reset_mask": mask})
        pool.reset(seed=None if interrupt else 9, options={"reset_mask": mask})
        shown.append(shown_in(pool))
        pool.close()
    assert np.array_equal(shown[0], shown[1])


class InterruptedAround:
    """The native pool, but Ctrl-C comes at the n-th call of one of its functions: before it, or once it is done."""

    def __init__(self, pool: CORE.EnvPool, function: str, *, call: int = 1, done: bool) -> None:
        self._pool, self._function, self._call, self._done = pool, function, call, done
        self._calls = 0

    def __getattr__(self, name: str) -> Callable[..., object]:
        def called(*arguments: object) -> object:
            self._calls += name == self._function
            now = name == self._function and self._calls == self._call
            if now and not self._done:
                raise KeyboardInterrupt
            result = getattr(self._pool, name)(*arguments)
            if now:
                raise KeyboardInterrupt
            return result

        return called


@contextmanager
def interrupted_around(pool: fastrl.AtariPool, function: str, **when: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "_pool", InterruptedAround(pool._pool, function, **when))
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize("done", [False, True])
def test_a_reset_can_be_interrupted_right_before_and_after_it_sends(done: bool) -> None:
    undisturbed, pool = (fastrl.AtariPool("pong", 2, threads=1, seed=3) for _ in range(2))
    with interrupted_around(pool, "send_resets", done=done):
        pool.reset(seed=5)
    assert pool.in_flight == (2 if done else 0)
    obs, info = pool.reset()
    expected, told = undisturbed.reset(seed=5)

    assert np.array_equal(obs, expected)
    assert info["frame_number"].tolist() == told["frame_number"].tolist()
    for made in (pool, undisturbed):
        made.close()


def test_what_a_reset_sent_before_it_was_interrupted_counts_as_reset(pool: fastrl.AtariPool) -> None:
    with interrupted_around(pool, "send_resets", done=True):
        pool.reset()
    obs, *_ = pool.recv()

    assert len(pool.save_state()) == 3
    assert np.array_equal(pool.observations(), obs)


def test_the_newest_seed_is_due_when_waiting_for_an_interrupted_step_is_interrupted() -> None:
    pool = fastrl.AtariPool("pong", 2, threads=1)
    _, expected = pool.reset(seed=6)
    pool.send([0, 0])
    with interrupted_around(pool, "discard_in_flight", done=False):
        pool.reset(seed=6)
    _, info = pool.reset()

    assert info["frame_number"].tolist() == expected["frame_number"].tolist()
    pool.close()


def test_seeds_stay_due_for_envs_whose_resets_were_not_received() -> None:
    pool = fastrl.AtariPool("pong", 3, threads=1, batch_size=1)
    first, expected = pool.reset(seed=5)
    first = first.copy()
    with interrupted_around(pool, "discard_in_flight", call=2, done=False):
        pool.reset(seed=5)
    received = int(pool.recv()[4]["env_id"][0])
    obs, info = pool.reset()
    others = [env for env in range(3) if env != received]

    assert info["frame_number"][others].tolist() == expected["frame_number"][others].tolist()
    assert np.array_equal(obs[others], first[others])
    assert info["frame_number"][received] > expected["frame_number"][received]  # its generators went on
    pool.close()


def test_the_constructors_seed_stays_due_for_envs_that_were_never_reset() -> None:
    pool = fastrl.AtariPool("pong", 2, threads=1, batch_size=1, seed=5)
    other = fastrl.AtariPool("pong", 2, threads=1, seed=5)
    expected, told = other.reset()
    pool.load_state(other.save_state([0]), [0])
    second = np.array([False, True])
    pool.send([0], [0])
    with pytest.raises(RuntimeError, match=r"reset: env 0 \(pong\) was sent an action and its result has not been rec"):
        pool.reset(options={"reset_mask": second})
    pool.recv()
    obs, info = pool.reset(options={"reset_mask": second})

    assert info["frame_number"][1] == told["frame_number"][1]
    assert np.array_equal(obs[1], expected[1])
    for made in (pool, other):
        made.close()


def test_a_worker_is_woken_while_another_plays() -> None:
    def cpu_ns() -> dict[str, int]:
        tasks = [t for t in Path("/proc/self/task").iterdir() if (t / "comm").read_text().startswith("fastrl-pool-")]
        return {task.name: int((task / "schedstat").read_text().split()[0]) for task in tasks}

    others = cpu_ns()  # of pools that are not collected yet
    pool = fastrl.AtariPool("breakout", 4, "nature", threads=2, batch_size=1, frame_skip=1000, noop_max=0)
    pool.reset(seed=0)
    time.sleep(0.05)  # both are asleep
    before = {task: used for task, used in cpu_ns().items() if task not in others}
    pool.send([0], [0])  # some 80 ms of work
    time.sleep(0.005)
    pool.send([0], [1])
    pool.recv()
    pool.recv()
    after = cpu_ns()
    assert len(before) == 2
    assert all(after[task] - before[task] > 20_000_000 for task in before)
    pool.close()


def test_a_refused_send_speaks_of_send(pool: fastrl.AtariPool) -> None:
    pool.reset(seed=0)
    with pytest.raises(ValueError, match=r"send: action 9 for env 1 \(breakout\) is outside \[0, 4\)"):
        pool.send([0, 9, 0])
    with pytest.raises(ValueError, match="send: actions have shape"):
        pool.send([0, 0])


def test_a_state_for_an_env_that_is_named_twice_is_refused(pool: fastrl.AtariPool) -> None:
    pool.reset(seed=0)
    states = pool.save_state()
    with pytest.raises(ValueError, match=r"env id 1 is given twice in \[1, 1\]"):
        pool.load_state(states[:2], [1, 1])


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_pool_cannot_be_copied_and_says_what_can(
    pool: fastrl.AtariPool, copied: Callable[[fastrl.AtariPool], object]
) -> None:
    with pytest.raises(TypeError, match=r"a pool cannot be copied.*take the envs along with save_state\(\)"):
        copied(pool)


def test_what_is_in_flight_is_told(pool: fastrl.AtariPool) -> None:
    pool.reset(seed=0)
    assert pool.in_flight == 0
    pool.send([0, 0, 0])
    assert pool.in_flight == 3
    pool.recv()
    assert pool.in_flight == 0
    pool.close()
    with pytest.raises(RuntimeError, match="in_flight: the pool is closed"):
        _ = pool.in_flight


def test_a_pool_that_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrl.engine import pools

    monkeypatch.setattr(pools, "available_memory_bytes", lambda: 10_000_000)
    with pytest.raises(
        MemoryError, match=r"num_envs: 50 envs need about 0\.1 GB, 0\.0 GB are available; at most 8 fit"
    ):
        fastrl.AtariPool("breakout", num_envs=50)
    fastrl.AtariPool("breakout", num_envs=8).close()


def test_recv_can_wait_for_a_limited_time() -> None:
    pool = fastrl.AtariPool("pong", num_envs=2, threads=1, frame_skip=1000, max_frames=0)
    pool.reset(seed=0)
    pool.send([0, 0])

    with pytest.raises(TimeoutError, match="recv: no result within 0"):
        pool.recv(timeout_s=0.0)
    pool.recv(timeout_s=60)
    pool.close()


def test_two_threads_in_one_pool_are_told_apart() -> None:
    pool = fastrl.AtariPool("pong", num_envs=8, threads=1, frame_skip=1000, max_frames=0)
    pool.reset(seed=0)
    pool.send(np.zeros(8, dtype=np.int64))  # more than half a second of work
    assert "recv: another thread is inside a call of this pool" in refusal_of_two_threads(pool.recv)
    assert "step: another thread is inside a call of this pool" in refusal_of_two_threads(lambda: pool.step([0] * 8))
    pool.step([0] * 8)  # and it is none the worse
    pool.close()


@pytest.mark.parametrize("operation", ["recv", "step"])
def test_closing_from_another_thread_wakes_who_waits(operation: str) -> None:
    pool = fastrl.AtariPool("pong", num_envs=2, threads=1, frame_skip=1000, max_frames=0)
    pool.reset(seed=0)
    if operation == "recv":
        pool.send([0, 0])
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            while True:
                pool.recv() if operation == "recv" else pool.step([0, 0])
        except RuntimeError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.05)
    pool.close()
    waiting.join(timeout=5)

    assert not waiting.is_alive()
    assert len(errors) == 1
    assert str(errors[0]).startswith((f"{operation}: ", "recv: nothing was sent"))


def test_more_threads_than_cores_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrl.engine import pools

    monkeypatch.setattr(pools, "_warned_about_threads", set())
    monkeypatch.setattr(pools, "usable_cores", lambda: 2)
    with pytest.warns(RuntimeWarning, match="8 threads on 2 usable cores"):
        fastrl.AtariPool("pong", num_envs=8, threads=8).close()
    fastrl.AtariPool("pong", num_envs=8, threads=8).close()
