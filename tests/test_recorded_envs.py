"""What Gymnasium's envs leave in a replay, how actions reach their bounds, and which envs are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_envs
from gymnasium import spaces

from fastrl.engine.mujoco_pool import MujocoPool
from fastrl.engine.recorded_envs import RecordedGymnasium, action_scaling, make_gymnasium

GAMMA = 0.9


def recorded(rounds: int, num_envs: int = 2, env: str = "test/Counting-v0", seed: int = 0) -> RecordedGymnasium:
    envs = RecordedGymnasium(env, num_envs, 2_000, seed=seed)
    envs.start()
    generator = np.random.default_rng(0)
    for _ in range(rounds):
        envs.send(generator.uniform(-1, 1, (num_envs, *envs.action_space.shape)).astype(np.float32))
        envs.receive()
    return envs


def test_a_true_end_has_no_discount_and_a_cut_has_it() -> None:
    envs = recorded(40)
    batch = envs.replay.sample(2_000, 1, GAMMA)
    episode, step = batch.obs[:, 0, 0], batch.obs[:, 0, 1]

    # Every transition stays within its episode, the last one of each included.
    assert np.array_equal(batch.next_obs[:, 0, 0], episode)
    assert np.array_equal(batch.next_obs[:, 0, 1], step + 1)
    assert np.array_equal(batch.reward, step + 1)
    ends = (episode % 2 == 1) & (step == 4)
    cut = (episode % 2 == 0) & (step == 6)
    assert ends.any()
    assert cut.any()
    assert (batch.discount[ends] == 0).all()
    assert (batch.discount[~ends] == np.float32(GAMMA)).all()
    envs.close()


def test_full_episodes_are_told_with_their_own_return() -> None:
    envs = RecordedGymnasium("test/Counting-v0", 2, 1_000)
    envs.start()
    told = []
    for _ in range(12):
        envs.send(np.zeros((2, 3), np.float32))
        told.append(envs.receive())
    envs.close()

    assert [len(games) for games in told] == [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 2]
    assert [(g.env, g.game_return, g.steps) for g in told[4]] == [(0, 15.0, 5), (1, 15.0, 5)]
    assert [(g.env, g.game_return, g.steps) for g in told[11]] == [(0, 28.0, 7), (1, 28.0, 7)]


def test_what_is_recorded_is_between_minus_one_and_one_and_what_is_taken_is_the_envs_own() -> None:
    envs = recorded(30, num_envs=1)
    batch = envs.replay.sample(500, 1, GAMMA)
    taken = np.array(envs._envs.envs[0].unwrapped.taken)
    given = np.random.default_rng(0).uniform(-1, 1, (30, 1, 3)).astype(np.float32)[:, 0]

    assert {tuple(a) for a in batch.action} <= {tuple(a) for a in given}
    half = (small_envs.HIGH - small_envs.LOW) / 2
    np.testing.assert_allclose(taken, small_envs.LOW + half * (given + 1), rtol=1e-6, atol=1e-6)
    envs.close()


# ---- bounds


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_minus_one_and_one_are_the_bounds_themselves(kind: Any) -> None:
    generator = np.random.default_rng(3)
    ends = np.sort(generator.normal(size=(2, 500)) * 10.0 ** generator.integers(-8, 8, 500), axis=0).astype(kind)
    ends[:, 0] = [-np.finfo(kind).max, np.finfo(kind).max]
    space = spaces.Box(ends[0], ends[1], dtype=kind)
    scale = action_scaling(space)

    assert np.array_equal(scale(np.full((1, 500), -1.0, np.float32))[0], space.low)
    assert np.array_equal(scale(np.full((1, 500), 1.0, np.float32))[0], space.high)
    for _ in range(50):
        assert space.contains(scale(generator.uniform(-1, 1, (1, 500)).astype(np.float32))[0])


def test_the_middle_and_the_order_are_kept() -> None:
    scale = action_scaling(spaces.Box(np.float32([-2, 0, -1]), np.float32([2, 10, 0])))

    assert scale(np.float32([[0, 0, 0]])).tolist() == [[0.0, 5.0, -0.5]]
    steps = scale(np.linspace(-1, 1, 1001, dtype=np.float32)[:, None].repeat(3, 1))
    assert (np.diff(steps, axis=0) > 0).all()


def test_whole_numbers_are_rounded_to_the_nearest() -> None:
    scale = action_scaling(spaces.Box(0, 4, (1,), np.int64))

    found = scale(np.float32([[-1], [-0.9], [-0.6], [0], [0.9], [1]]))
    assert found.ravel().tolist() == [0, 0, 1, 2, 4, 4]
    assert found.dtype == np.int64


# ---- what is refused


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("test/Unbounded-v0", r"env: test/Unbounded-v0 has actions Box\(-inf, inf.*TransformAction"),
        *((f"test/{name}-v0", "has observations .* a vector of .*FlattenObs") for name in small_envs.NO_VECTORS),
        ("Pendulun-v1", "'Pendulun-v1' is neither an Atari game nor an env of Gymnasium"),
    ],
)
def test_envs_that_cannot_be_learned_are_refused(env: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecordedGymnasium(env, 1, 1_000)


def test_actions_that_a_learner_refuses_are_refused_in_its_words_and_the_envs_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed, close = [], MujocoPool.close
    monkeypatch.setattr(MujocoPool, "close", lambda pool: (close(pool), closed.append(pool)))

    with pytest.raises(ValueError, match=r"env: HalfCheetah-v5 has actions Box\(.*\); none of these"):
        RecordedGymnasium("HalfCheetah-v5", 1, 1_000, refusal=lambda actions: "none of these")

    assert len(closed) == 1


@pytest.mark.parametrize("what", ["reward", "observation", "overflow"])
def test_numbers_that_are_none_never_reach_the_replay(what: str) -> None:
    envs = RecordedGymnasium(f"test/Spoilt-{what}-v0", 2, 1_000)
    envs.start()
    for _ in range(2):
        envs.send(np.zeros((2, 3), np.float32))
        envs.receive()
    envs.send(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=rf"step: test/Spoilt-{what}-v0 gave env 0 an? .* only finite numbers"):
        envs.receive()

    batch = envs.replay.sample(200, 1, GAMMA)
    assert np.isfinite(batch.reward).all()
    assert np.isfinite(batch.next_obs).all()
    envs.close()


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import gymnasium

    def missing(*_: Any, **__: Any) -> None:
        raise gymnasium.error.DependencyNotInstalled("mujoco is not installed")

    monkeypatch.setattr(gymnasium, "make_vec", missing)
    with pytest.raises(ValueError, match="'HalfCheetah-v5' needs a package that is not installed: mujoco"):
        make_gymnasium("HalfCheetah-v5", 1)


def test_a_mujoco_task_goes_on_from_its_saved_state_to_the_bit(tmp_path: Path) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (120, 2, 3)).astype(np.float32)

    def play(envs: RecordedGymnasium, these: np.ndarray) -> list[Any]:
        games = []
        for row in these:
            envs.send(row)
            games += envs.receive()
        return games

    whole = RecordedGymnasium("Hopper-v5", 2, 600, seed=4)
    whole.start()
    play(whole, actions[:70])
    saved, states = whole.replay.save(tmp_path), whole.save_state()
    assert states is not None
    later = play(whole, actions[70:])
    resumed = RecordedGymnasium("Hopper-v5", 2, 600, seed=5, resume_replay=saved)
    resumed.start(states)

    assert play(resumed, actions[70:]) == later
    assert len(later) >= 2  # some episode was under way when the state was saved
    assert resumed.replay.digest() == whole.replay.digest()
    assert resumed.save_state() == whole.save_state()
    whole.close()
    resumed.close()
