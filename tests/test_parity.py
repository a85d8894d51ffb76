"""Pools are what their protocols' references are, to the byte; and what compares them sees a mistake.

A sample of the matrix of tests/parity.py, with games, seeds and ways of stepping that vary from run to run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ale_py
import gymnasium
import numpy as np
import parity
import pytest
from parity import GAMES, VARIANTS, Cell, Difference, planned_cell, play_cell, reset_rows, rows
from reference import ORACLES, ReferenceEnv, Seen
from stable_baselines3.common.atari_wrappers import AtariWrapper, MaxAndSkipEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from fastrl import AtariPool, Protocol, build_info
from fastrl import protocol as protocol_named

# One env's history: its results in order, and whether each was a reset.
History = list[tuple[bool, Seen]]


@contextmanager
def a_pool(*arguments: Any, **named: Any) -> Iterator[AtariPool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastrl.engine.pools._warned_about_threads", {"AtariPool"})
        pool = AtariPool(*arguments, **named)
    yield pool
    pool.close()


def actions_of(env: int, count: int, actions: int) -> list[int]:
    return np.random.default_rng([9, env]).integers(actions, size=count).tolist()


def copied(seen: Seen) -> Seen:
    return dataclasses.replace(seen, obs=seen.obs.copy())


def history_of_stepping(pool: AtariPool, steps: int, seed: int) -> list[History]:
    """Steps all envs at once; an env's actions are its own, and none is spent on a reset."""
    actions = [iter(actions_of(env, steps, int(pool.single_action_space.n))) for env in range(pool.num_envs)]
    histories: list[History] = [[(True, copied(seen))] for _, seen in reset_rows(*pool.reset(seed=seed))]
    for _ in range(steps):
        due = [seen.terminated or seen.truncated for seen in (history[-1][1] for history in histories)]
        step = [0 if due[env] else next(actions[env]) for env in range(pool.num_envs)]
        for env, seen in rows(*pool.step(np.array(step))):
            histories[env].append((due[env], copied(seen)))
    return histories


def history_of_sending(pool: AtariPool, steps: int, seed: int) -> list[History]:
    """The same by send and recv, envs in any order, some of them held back."""
    random = np.random.default_rng(seed)
    actions = [iter(actions_of(env, 10 * steps, int(pool.single_action_space.n))) for env in range(pool.num_envs)]
    histories: list[History] = [[(True, copied(seen))] for _, seen in reset_rows(*pool.reset(seed=seed))]
    idle, under_way = list(range(pool.num_envs)), 0
    while min(len(history) for history in histories) <= steps:
        random.shuffle(idle)
        count = int(random.integers(max(0, pool.batch_size - under_way), len(idle) + 1))
        now, idle = idle[:count], idle[count:]
        due = [histories[env][-1][1] for env in now]
        step = [
            0 if last.terminated or last.truncated else next(actions[env]) for env, last in zip(now, due, strict=True)
        ]
        if now:
            pool.send(np.array(step), np.array(now))
        for env, seen in rows(*pool.recv()):
            last = histories[env][-1][1]
            histories[env].append((last.terminated or last.truncated, copied(seen)))
            idle.append(env)
        under_way = pool.num_envs - len(idle)
    return histories


def assert_equal(ours: list[History], theirs: list[History]) -> None:
    """Histories agree as far as the shorter of each goes."""
    for env, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert min(len(mine), len(other)) > 10
        for step, ((was_reset, a), (other_was_reset, b)) in enumerate(zip(mine, other, strict=False)):
            assert was_reset == other_was_reset, f"env {env}, step {step}"
            difference = parity.first_difference(a, b)
            assert difference is None, f"env {env}, step {step}: {difference}"


# ---- Pools beside their references


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_pool_equals_the_reference_of_its_protocol(variant: str, session_seed: int) -> None:
    place = list(VARIANTS).index(variant)
    random = np.random.default_rng([session_seed, place])
    limited = (session_seed + place) % 3 == 0
    cell = planned_cell(str(random.choice(GAMES)), variant, None, limited, 600 if limited else 200, random)
    print(f"FASTRL_TEST_SEED={session_seed}: {cell}")

    play_cell(cell, most_seconds=15)


@pytest.mark.parametrize("protocol", ["nature", "sb3", "gymnasium", "dopamine"])
def test_a_step_that_is_cut_short_shows_what_the_reference_shows(protocol: str) -> None:
    rules = {"sticky": 0.25, "max_frames": 43}
    tally = play_cell(Cell("breakout", protocol, "step, 1 env", rules, 80, seed=5))

    assert tally.counts["steps cut short"] >= 2


@pytest.mark.parametrize("protocol", ["nature", "sb3", "gymnasium"])
def test_games_that_end_within_the_noops_begin_again_as_the_reference_does(protocol: str) -> None:
    cell = Cell("breakout", protocol, "step, 1 env", {"max_frames": 9}, 12, seed=6, noops=(1, 30, 9, 8, 10, 18))

    assert play_cell(cell).counts["games ended inside a reset"] >= 2


@pytest.mark.parametrize("variant", ["nature", "sb3", "gymnasium", "gymnasium, a life"])
def test_a_lost_life_does_what_it_does_in_the_reference(variant: str) -> None:
    tally = play_cell(Cell("breakout", variant, "step, 1 env", {"sticky": 0.0}, 150, seed=1))

    assert (tally.counts["lives lost"] > 0) == (variant != "gymnasium")


def test_a_jump_to_a_cached_start_equals_the_emulated_reset() -> None:
    # Its reset takes 134 frames of the game, so the limit falls into the no-ops.
    cell = Cell("name_this_game", "sb3", "step, 1 env", {"max_frames": 160}, 30, seed=1, noops=(30, 5, 26, 25, 20, 2))
    tally = play_cell(cell)

    assert tally.counts["games begun by a possible jump"] >= 3


@pytest.mark.parametrize("way", ["step, 1 env", "saved and loaded"])
def test_another_mode_and_difficulty_of_a_game_are_those_of_the_reference(way: str) -> None:
    play_cell(Cell("breakout", "sb3", way, {"mode": 4, "difficulty": 1, "max_frames": 200}, 80, seed=3))


def test_a_television_that_loses_its_colours_looks_as_in_the_reference() -> None:
    # A PAL game. Where a frame has an odd number of lines the engine sets the lowest bit of every colour.
    play_cell(Cell("air_raid", "gymnasium", "step, 1 env", {}, 20, seed=3))


def test_the_oracle_of_sb3_is_sb3_with_its_own_vector_env_and_frame_stack() -> None:
    gymnasium.register_envs(ale_py)

    def make() -> gymnasium.Env:
        return AtariWrapper(gymnasium.make("BreakoutNoFrameskip-v4"))

    theirs = VecFrameStack(DummyVecEnv([make, make]), 4)
    theirs.seed(3)
    expected = theirs.reset()
    with a_pool("BreakoutNoFrameskip-v4", 2, "sb3", threads=1, autoreset="same_step") as pool:
        obs, _ = pool.reset(seed=3)
        assert np.array_equal(obs, np.moveaxis(expected, -1, 1))
        ended = 0
        for step in range(150):
            actions = np.array([actions_of(env, 150, 4)[step] for env in range(2)])
            expected, rewards, dones, infos = theirs.step(actions)
            obs, reward, terminated, truncated, info = pool.step(actions)
            assert np.array_equal(obs, np.moveaxis(expected, -1, 1))
            assert np.array_equal(reward, rewards)
            assert np.array_equal(terminated | truncated, dones)
            for env in np.flatnonzero(dones):
                ended += 1
                assert np.array_equal(info["final_obs"][env], np.moveaxis(infos[env]["terminal_observation"], -1, 0))
    theirs.close()

    assert ended > 0


def test_an_oracle_is_the_env_that_gymnasium_makes() -> None:
    gymnasium.register_envs(ale_py)
    made = gymnasium.wrappers.FrameStackObservation(
        gymnasium.wrappers.AtariPreprocessing(gymnasium.make("ALE/Seaquest-v5", frameskip=1)), 4
    )
    oracle = ReferenceEnv("gymnasium", "seaquest", sticky=0.25)
    obs, _ = made.reset(seed=8)

    assert np.array_equal(obs, oracle.reset(8).obs)
    for action in actions_of(0, 60, oracle.actions):
        obs, reward, *_ = made.step(action)
        seen = oracle.step(action)
        assert np.array_equal(obs, seen.obs)
        assert reward == seen.reward
    made.close()
    oracle.close()


# ---- One pool beside another


@pytest.fixture(scope="module")
def game_of_the_day(session_seed: int) -> str:
    game = str(np.random.default_rng(session_seed).choice(GAMES))
    print(f"{game}, FASTRL_TEST_SEED={session_seed}")
    return game


def test_results_do_not_depend_on_the_number_of_threads(game_of_the_day: str, session_seed: int) -> None:
    histories = []
    for threads in (1, 2, 8):
        with a_pool(game_of_the_day, 8, "sb3", threads=threads, sticky=0.25, max_frames=150) as pool:
            assert pool.threads == threads
            histories.append(history_of_stepping(pool, 50, session_seed))

    assert_equal(histories[1], histories[0])
    assert_equal(histories[2], histories[0])


def test_sending_in_any_order_equals_stepping(game_of_the_day: str, session_seed: int) -> None:
    rules: dict[str, Any] = {"protocol": "nature", "max_frames": 200}
    with a_pool(game_of_the_day, 4, threads=1, **rules) as pool:
        stepped = history_of_stepping(pool, 100, session_seed)

    for batch_size, threads in ((1, 1), (2, 2), (3, 8)):
        with a_pool(game_of_the_day, 4, threads=threads, batch_size=batch_size, **rules) as pool:
            assert_equal(history_of_sending(pool, 60, session_seed), stepped)


THREE_KINDS_OF_EPISODES = [("sb3", {}), ("gymnasium", {"life_loss": "restarts"}), ("dopamine", {})]


@pytest.fixture(params=THREE_KINDS_OF_EPISODES, ids=lambda kind: kind[0])
def rules(request: pytest.FixtureRequest) -> dict[str, Any]:
    protocol, others = request.param
    return {"protocol": protocol, "max_frames": 230, "threads": 2, **others}


AUTORESET_STEPS = 120


def next_step_histories(rules: dict[str, Any]) -> list[History]:
    with a_pool("breakout", 3, autoreset="next_step", **rules) as pool:
        histories = history_of_stepping(pool, AUTORESET_STEPS, seed=4)
    assert sum(was_reset for history in histories for was_reset, _ in history) > 6
    return histories


def test_autoreset_disabled_agrees_with_next_step(rules: dict[str, Any]) -> None:
    histories: list[History] = [[], [], []]
    with a_pool("breakout", 3, autoreset="disabled", **rules) as pool:
        for env, seen in reset_rows(*pool.reset(seed=4)):
            histories[env].append((True, copied(seen)))
        actions = [actions_of(env, AUTORESET_STEPS, int(pool.single_action_space.n)) for env in range(3)]
        for step in range(AUTORESET_STEPS):
            over = np.zeros(3, dtype=np.bool_)
            for env, seen in rows(*pool.step(np.array([actions[env][step] for env in range(3)]))):
                histories[env].append((False, copied(seen)))
                over[env] = seen.terminated or seen.truncated
            if over.any():
                begun = reset_rows(*pool.reset(options={"reset_mask": over}))
                for env, seen in ((env, seen) for env, seen in begun if over[env]):
                    histories[env].append((True, copied(seen)))

    assert_equal(histories, next_step_histories(rules))


def test_same_step_agrees_with_next_step(rules: dict[str, Any]) -> None:
    histories: list[History] = [[], [], []]
    ended_games: list[list[Any]] = [[], [], []]
    with a_pool("breakout", 3, autoreset="same_step", **rules) as pool:
        for env, seen in reset_rows(*pool.reset(seed=4)):
            histories[env].append((True, copied(seen)))
        actions = [actions_of(env, AUTORESET_STEPS, int(pool.single_action_space.n)) for env in range(3)]
        for step in range(AUTORESET_STEPS):
            results = pool.step(np.array([actions[env][step] for env in range(3)]))
            info = results[-1]
            for env, seen in rows(*results):
                ended_games[env] += [seen.ended_game] if seen.ended_game else []
                begun = dataclasses.replace(seen, ended_game=None)
                over = seen.terminated or seen.truncated
                assert over == bool(info["_final_obs"][env] if "_final_obs" in info else False)
                if over:  # reward and flags are those of the last step, everything else is the next episode's
                    names = ("lives", "frame_number", "episode_frame_number")
                    final = {name: int(info["final_info"][name][env]) for name in names}
                    last = dataclasses.replace(begun, obs=info["final_obs"][env], **final)
                    histories[env].append((False, copied(last)))
                    begun = dataclasses.replace(begun, reward=0.0, terminated=False, truncated=False)
                histories[env].append((over, copied(begun)))

    expected = next_step_histories(rules)
    without_games = [[(r, dataclasses.replace(seen, ended_game=None)) for r, seen in history] for history in expected]
    assert_equal(histories, without_games)
    for env in range(3):  # a game that a reset ended is told of with the step that the reset belongs to
        games = [seen.ended_game for _, seen in expected[env] if seen.ended_game]
        assert ended_games[env][: len(games)] == games


@pytest.mark.parametrize("protocol", ["sb3", "cleanrl", "gymnasium"])
def test_every_cpu_path_gives_the_same_bytes(protocol: str, game_of_the_day: str, session_seed: int) -> None:
    histories = []
    for path in build_info()["cpu_paths"]:
        with a_pool(game_of_the_day, 2, protocol, threads=1, cpu_path=path, max_frames=150) as pool:
            histories.append(history_of_stepping(pool, 100, session_seed))

    assert build_info()["cpu_paths"][0] == "portable"
    for history in histories[1:]:
        assert_equal(history, histories[0])


def test_emulated_and_cached_resets_are_the_same() -> None:
    histories = []
    for cached in (True, False):
        with a_pool("skiing", 2, "sb3", threads=1, cached_resets=cached, max_frames=90) as pool:
            histories.append(history_of_stepping(pool, 80, 3))

    assert_equal(histories[0], histories[1])


# ---- The comparison sees mistakes


CUT_SHORT = {"max_frames": 43}  # without no-ops and FIRE, the eleventh step of a game lasts three frames
MISTAKES_IN_A_RULE: list[tuple[str, str, str, Any, dict[str, Any], tuple[int, ...] | None]] = [
    # game, protocol, the rule that the pool gets wrong, rules and no-ops of both where that must show
    ("seaquest", "sb3", "frame_skip", 3, {}, None),
    ("seaquest", "sb3", "pooling", "gymnasium", CUT_SHORT, None),
    ("ms_pacman", "sb3", "pooling", "dopamine", {"max_frames": 20}, (1, 19, 18, 17, 19)),
    ("seaquest", "sb3", "pooling", "last_two", CUT_SHORT, None),
    ("seaquest", "gymnasium", "pooling", "max_and_skip", CUT_SHORT, None),
    ("seaquest", "dopamine", "pooling", "gymnasium", CUT_SHORT, None),
    ("seaquest", "nature", "pooling", "max_and_skip", CUT_SHORT, None),
    # cv2's grey and luminance differ for four pairs of colours only; the tables have tests of their own.
    ("seaquest", "sb3", "grey", "ale", {}, None),
    ("seaquest", "nature", "grey", "ale", {}, None),
    ("seaquest", "dopamine", "grey", "cv2", {}, None),
    ("seaquest", "cleanrl", "grey", "cv2_after_resize", {}, None),
    ("seaquest", "cleanrl-0.28", "grey", "cv2", {}, None),
    ("seaquest", "sb3", "stack_padding", "first_frame", {}, None),
    ("seaquest", "cleanrl", "stack_padding", "zeros", {}, None),
    ("seaquest", "sb3", "noop_max", 29, {}, None),
    ("seaquest", "dopamine", "noop_max", 1, {}, None),
    ("seaquest", "sb3", "fire_at_reset", False, {}, None),
    ("seaquest", "nature", "fire_at_reset", True, {}, None),
    ("breakout", "sb3", "life_loss", "ignored", {}, None),
    ("breakout", "sb3", "life_loss", "restarts", {}, None),
    ("breakout", "gymnasium", "life_loss", "ends_episode", {}, None),
    ("skiing", "sb3", "reward", "raw", {}, None),
    ("skiing", "gymnasium", "reward", "sign", {}, None),
    ("breakout", "dopamine", "sticky", 0.5, {}, None),
    ("breakout", "dopamine", "full_actions", True, {}, None),
    ("seaquest", "nature", "max_frames", 120, {}, None),
]


@pytest.mark.parametrize(("game", "protocol", "rule", "wrong", "rules_of_both", "noops"), MISTAKES_IN_A_RULE)
def test_a_wrong_rule_in_the_pool_is_seen(
    game: str, protocol: str, rule: str, wrong: Any, rules_of_both: dict[str, Any], noops: tuple[int, ...] | None
) -> None:
    mistaken = dataclasses.replace(protocol_named(protocol), **{rule: wrong})

    with pytest.raises(Difference, match=f"{game} under {protocol}"):
        play_cell(Cell(game, protocol, "step, 1 env", rules_of_both, 150, seed=2, noops=noops), protocol=mistaken)


def test_every_rule_of_a_protocol_has_its_mistake() -> None:
    rules = {field.name for field in dataclasses.fields(Protocol)}

    # The cap in evaluation is not a pool's: who evaluates passes it as max_frames.
    assert rules - {mistake[2] for mistake in MISTAKES_IN_A_RULE} == {"name", "reference", "evaluation_max_frames"}


def off_by_one_stack(seen: Seen) -> Seen:
    return dataclasses.replace(seen, obs=np.roll(seen.obs, 1, axis=0))


def one_pixel(seen: Seen) -> Seen:
    obs = seen.obs.copy()
    obs[3, 50, 50] ^= 1
    return dataclasses.replace(seen, obs=obs)


SPOILED: dict[str, Callable[[Seen], Seen]] = {
    "a stack off by one": off_by_one_stack,
    "one bit of one pixel": one_pixel,
    "a mirrored screen": lambda seen: dataclasses.replace(seen, obs=seen.obs[:, :, ::-1]),
    "a reward": lambda seen: dataclasses.replace(seen, reward=seen.reward + 1),
    "terminated": lambda seen: dataclasses.replace(seen, terminated=not seen.terminated),
    "truncated": lambda seen: dataclasses.replace(seen, truncated=not seen.truncated),
    "lives": lambda seen: dataclasses.replace(seen, lives=seen.lives - 1),
    "the frame number": lambda seen: dataclasses.replace(seen, frame_number=seen.frame_number + 1),
    "the frame number in the game": lambda seen: dataclasses.replace(
        seen, episode_frame_number=seen.episode_frame_number + 1
    ),
    "an ended game": lambda seen: dataclasses.replace(seen, ended_game=(0.0, 1, 1)),
}


@pytest.mark.parametrize("mistake", SPOILED)
def test_a_wrong_result_is_seen(mistake: str) -> None:
    class Spoiled(ReferenceEnv):
        def step(self, action: int) -> Seen:
            return SPOILED[mistake](super().step(action))

    with pytest.raises(Difference, match="env 0, step 1: "):
        play_cell(Cell("breakout", "nature", "step, 1 env", {}, 2, seed=2), Spoiled)


def test_a_wrong_number_of_noops_is_seen() -> None:
    class OneMore(ReferenceEnv):
        def reset(self, seed: int | None = None, noops: Any = None) -> Seen:
            return super().reset(seed, None if noops is None else [count + 1 for count in noops])

    cell = Cell("space_invaders", "sb3", "step, 1 env", {}, 2, seed=2, noops=(7,))
    play_cell(cell)

    with pytest.raises(Difference, match="env 0, reset 0: "):
        play_cell(cell, OneMore)


def test_swapped_buffers_are_seen() -> None:
    class Swapped(ReferenceEnv):
        """Keeps its two screens in the wrong order, which shows only where a step is cut short."""

        def step(self, action: int) -> Seen:
            layer: Any = self.env
            while not isinstance(layer, MaxAndSkipEnv):
                layer = layer.env
            layer._obs_buffer = layer._obs_buffer[::-1].copy()
            return super().step(action)

    cell = Cell("pong", "sb3", "step, 1 env", {"max_frames": 43, "noop_max": 0}, 100, seed=2)
    play_cell(cell)

    with pytest.raises(Difference, match=r"obs: \d+ of 28224 pixels"):
        play_cell(cell, Swapped)


def test_seeds_belong_to_envs() -> None:
    class NextSeed(ReferenceEnv):
        def reset(self, seed: int | None = None, noops: Any = None) -> Seen:
            return super().reset(None if seed is None else seed + 1, noops)

    with pytest.raises(Difference):
        play_cell(Cell("breakout", "sb3", "step, 1 thread", {}, 20, seed=2), NextSeed)


def test_every_protocol_has_an_oracle() -> None:
    from fastrl.engine.protocol import PROTOCOLS

    assert set(ORACLES) == set(PROTOCOLS)
