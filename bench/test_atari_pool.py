"""Agent steps a second of the pool, beside EnvPool, ALE's AtariVectorEnv and the bare engine.

Same settings for all: 16 envs, frame skip 4, stack of 4, up to 30 no-ops, FIRE at resets, life loss ends an episode,
clipped rewards, no sticky actions, the same random actions. The limit is the engine alone: a loop in as many threads
that makes the very act() and reset_game() calls that our pool makes in the same round, and nothing else. Where the pool
jumps to saved starts it emulates less than this loop. It plays one game after the other; "in turn" is the same loop
step by step over its games, as a pool has to go, when each finds the caches full of the others.

In halves: whichever 8 of the 16 envs are done are received and sent again, so that no thread waits for a batch's end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from contest import in_threads, side_by_side, stepper

import fastrl
from fastrl.engine.stage_times import BareEngine, play_in_turn

GAMES = ("pong", "breakout", "space_invaders", "ms_pacman", "seaquest", "qbert")
QUICK_GAMES = ("breakout",)
NUM_ENVS = 16
FRAME_SKIP = 4


def camel(game: str) -> str:
    return "".join(part.title() for part in game.split("_"))


def random_actions(steps: int, game: str) -> np.ndarray:
    pool = fastrl.AtariPool(game)
    actions = np.random.default_rng(0).integers(pool.num_actions, size=(steps, NUM_ENVS)).astype(np.int64)
    pool.close()
    return actions


def our_pool(game: str, threads: int, actions: np.ndarray, num_envs: int = NUM_ENVS) -> Callable[[], None]:
    pool = fastrl.AtariPool(game, num_envs, "sb3", threads=threads, sticky=0.0)
    pool.reset(seed=0)
    return stepper(pool.step, actions)


def in_halves(pool: Any, actions: np.ndarray) -> Callable[[], None]:
    """A task: all envs are sent; then whoever is done is received and sent again, as often as there are rows."""
    halves = np.repeat(actions, 2, axis=0)

    def run() -> None:
        pool.send(actions[0], np.arange(NUM_ENVS))
        for row in halves[2:]:  # the first two halves are under way
            envs = pool.recv()[-1]["env_id"]
            pool.send(row[envs], envs)
        for _ in range(2):
            pool.recv()

    return run


def our_pool_in_halves(game: str, threads: int, actions: np.ndarray) -> Callable[[], None]:
    pool = fastrl.AtariPool(game, NUM_ENVS, "sb3", threads=threads, sticky=0.0, batch_size=NUM_ENVS // 2)
    pool.reset(seed=0)
    return in_halves(pool, actions)


def envpool_in_halves(game: str, threads: int, actions: np.ndarray) -> Callable[[], None]:
    envs = make_envpool(game, threads, batch_size=NUM_ENVS // 2)
    envs.async_reset()
    for _ in range(2):
        envs.recv()
    return in_halves(envs, actions)


def envpool_pool(game: str, threads: int, actions: np.ndarray) -> Callable[[], None]:
    envs = make_envpool(game, threads)
    envs.reset()
    return stepper(envs.step, actions)


def make_envpool(game: str, threads: int, **options: int) -> Any:
    import envpool

    return envpool.make(
        f"{camel(game)}-v5",
        env_type="gymnasium",
        num_envs=NUM_ENVS,
        num_threads=threads,
        seed=0,
        episodic_life=True,
        reward_clip=True,
        repeat_action_probability=0.0,
        frame_skip=FRAME_SKIP,
        stack_num=4,
        noop_max=30,
        **options,
    )


def ale_pool(game: str, threads: int, actions: np.ndarray) -> Callable[[], None]:
    from ale_py import AtariVectorEnv

    envs = AtariVectorEnv(
        game,
        num_envs=NUM_ENVS,
        num_threads=threads,
        img_height=84,
        img_width=84,
        stack_num=4,
        noop_max=30,
        use_fire_reset=True,
        episodic_life=True,
        reward_clipping=True,
        repeat_action_probability=0.0,
        frameskip=FRAME_SKIP,
        grayscale=True,
        maxpool=True,
    )
    envs.reset(seed=0)
    return stepper(envs.step, actions)


def bare_engine(game: str, threads: int, actions: np.ndarray, rounds: int, in_turn: bool = False) -> Callable[[], None]:
    """The engine alone, split over threads, making the calls that our pool makes in the same round."""
    steps = 1 if in_turn else len(actions)  # of a row: what one game plays before the next one's turn
    rows = [actions[:, env].reshape(-1, steps).tolist() * (rounds + 1) for env in range(NUM_ENVS)]
    engines = [BareEngine(f"{camel(game)}NoFrameskip-v4", "sb3", env, rows[env]) for env in range(NUM_ENVS)]
    rows_per_round = len(actions) // steps
    return lambda: side_by_side(lambda share: play_in_turn(engines[share], rows_per_round), threads)


def check_answer(game: str) -> None:
    """The pool that is timed gives what Stable-Baselines3's wrappers give."""
    from reference import ReferenceEnv

    pool = fastrl.AtariPool(game, 1, "sb3", sticky=0.0)
    reference = ReferenceEnv("sb3", game)
    obs, _ = pool.reset(seed=3)
    assert np.array_equal(obs[0], reference.reset(seed=3).obs)
    for action in np.random.default_rng(1).integers(pool.num_actions, size=120):
        obs, reward, terminated, truncated, _ = pool.step([action])
        expected = reference.step(int(action))
        assert np.array_equal(obs[0], expected.obs)
        assert (reward[0], terminated[0], truncated[0]) == (expected.reward, expected.terminated, expected.truncated)
    pool.close()


PEERS = {"EnvPool": envpool_pool, "ALE vector": ale_pool}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("game", GAMES)
def test_pool_speed(contest: Any, game: str, threads: int, quick: bool) -> None:
    if quick and game not in QUICK_GAMES:
        pytest.skip("--quick times one game")
    check_answer(game)
    steps, rounds = (20, 2) if quick else (60, 7)
    actions = random_actions(steps, game)
    match = contest(f"{game}, {in_threads(threads)}", "steps/s", steps * NUM_ENVS, limit="act() loop")
    limit = bare_engine(game, threads, actions, rounds)
    in_turn = bare_engine(game, threads, actions, rounds, in_turn=True)
    others = {"act() loop": limit, "act() in turn": in_turn, **match.peers(PEERS, game, threads, actions)}
    match.run(our_pool(game, threads, actions), others, rounds)


@pytest.mark.parametrize("game", GAMES)
def test_pool_speed_in_halves(contest: Any, game: str, quick: bool) -> None:
    if quick and game not in QUICK_GAMES:
        pytest.skip("--quick times one game")
    check_answer(game)
    threads, (steps, rounds) = 2, (20, 2) if quick else (60, 7)
    actions = random_actions(steps, game)
    match = contest(f"{game}, {in_threads(threads)}, in halves", "steps/s", steps * NUM_ENVS, limit="act() loop")
    others = {
        "act() loop": bare_engine(game, threads, actions, rounds),
        **match.peers({"EnvPool": envpool_in_halves}, game, threads, actions),
    }
    match.run(our_pool_in_halves(game, threads, actions), others, rounds)


@pytest.mark.parametrize("num_envs", [1, 4, 16, 64])
@pytest.mark.parametrize("threads", [1, 2])
def test_pool_scaling(contest: Any, num_envs: int, threads: int, quick: bool) -> None:
    """The same pool with more envs and threads, beside one env in one thread."""
    if quick and num_envs != 16:
        pytest.skip("--quick times one size")
    check_answer("breakout")
    total = 320 if quick else 1600
    actions = np.random.default_rng(0).integers(4, size=(max(1, total // num_envs), num_envs)).astype(np.int64)
    single = np.random.default_rng(0).integers(4, size=(total, 1)).astype(np.int64)
    match = contest(
        f"breakout, {num_envs} env{'' if num_envs == 1 else 's'}, {in_threads(threads)}", "steps/s", actions.size
    )
    match.run(
        our_pool("breakout", min(threads, num_envs), actions, num_envs),
        {"1 env, 1 thread": our_pool("breakout", 1, single, 1)},
        rounds=2 if quick else 5,
    )
