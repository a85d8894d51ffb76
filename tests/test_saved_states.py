"""A saved env goes on exactly as if nothing had happened: anywhere, from any moment. A damaged state is refused.

Each game is played once with nobody saving (what ought to be) and once saved at every step. Then it is loaded again
from the awkward moments: right after a reset, where the engine's own states are not exact; with a reset due; with a
joystick that sticks.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from parity import first_difference, reset_rows, rows
from reference import Seen

from fastrl import AtariPool
from fastrl.engine import rules as rules_module

STEPS = 330
FOLLOWED = 30  # steps that are compared after a load


@dataclass(frozen=True)
class Game:
    name: str
    protocol: str
    rules: dict[str, Any]

    def pool(self, envs: int = 1, threads: int = 1, **others: Any) -> AtariPool:
        return AtariPool(self.name, envs, self.protocol, threads=threads, **{**self.rules, **others})

    @property
    def actions(self) -> list[int]:
        count = {"qbert": 6, "tetris": 5, "seaquest": 18, "breakout": 4, "freeway": 3}[self.name]
        return np.random.default_rng(len(self.name)).integers(count, size=STEPS).tolist()


STICKY = {"sticky": 0.25}
GAMES = [
    Game("qbert", "sb3", STICKY),  # stands at 0 lives for a while; states from a reset do not restore in the engine
    Game("tetris", "gymnasium", {**STICKY, "max_frames": 420}),  # the same, and no lives
    Game("seaquest", "nature", {**STICKY, "max_frames": 1200}),  # its resets depend on what was played
    Game("breakout", "cleanrl", {}),  # jumps to cached starts; paddles
    Game("breakout", "gymnasium", {**STICKY, "life_loss": "restarts", "noop_max": 0}),  # no frames after a reset
    Game("freeway", "dopamine", {**STICKY, "max_frames": 300}),
]


@dataclass(frozen=True)
class Recording:
    game: Game
    results: list[Seen]  # 0 is the first reset, k the result of action k - 1
    states: list[bytes]  # saved after each of them

    @property
    def moments(self) -> dict[str, int]:
        """Places in the recording from which going on is awkward."""
        over = [i for i, seen in enumerate(self.results) if seen.terminated or seen.truncated]
        lost_a_life = [i for i in over if not self.results[i].truncated and self.results[i].ended_game is None]
        game_over = [i for i in over if self.results[i].ended_game is not None]
        moments = {"first reset": 0, **{f"{steps} steps after it": steps for steps in range(1, 6)}, "later": 100}
        for name, places in (("life lost", lost_a_life), ("game over", game_over)):
            if places:
                last = max(i for i in places if i < STEPS - 8)
                moments |= {f"before: {name}": last - 1, name: last, f"reset after: {name}": last + 1}
                moments |= {f"{steps} steps after the reset after: {name}": last + 1 + steps for steps in (1, 2, 3, 5)}
        return moments


def only(results: Any) -> Seen:
    [(_, seen)] = rows(*results)
    return seen


def play(pool: AtariPool, game: Game, begin: int, steps: int) -> list[Seen]:
    """What a pool of one env shows when it takes the game's actions from place ``begin`` on."""
    return [only(pool.step(np.array([action]))) for action in game.actions[begin : begin + steps]]


def assert_same(ours: list[Seen], theirs: list[Seen], where: str) -> None:
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        difference = first_difference(a, b)
        assert difference is None, f"{where}: {step} steps after loading: {difference}"


@pytest.fixture(scope="module", params=GAMES, ids=lambda game: f"{game.name}-{game.protocol}")
def recording(request: pytest.FixtureRequest) -> Recording:
    game: Game = request.param
    pool = game.pool()
    [(_, first)] = reset_rows(*pool.reset(seed=11))
    results, states = [first], pool.save_state()
    for action in game.actions:
        results.append(only(pool.step(np.array([action]))))
        states += pool.save_state()
    pool.close()
    return Recording(game, results, states)


def test_saving_changes_nothing(recording: Recording) -> None:
    game = recording.game
    pool = game.pool()
    [(_, first)] = reset_rows(*pool.reset(seed=11))

    assert_same([first, *play(pool, game, 0, STEPS)], recording.results, "saved at every step and never")
    pool.close()


def test_the_awkward_moments_are_met(recording: Recording) -> None:
    moments = recording.moments

    assert "first reset" in moments
    if recording.game.name in ("qbert", "seaquest", "breakout"):
        assert "life lost" in moments
    if recording.game.name != "seaquest":
        assert "game over" in moments or recording.game.rules.get("life_loss") == "restarts"


def test_a_loaded_env_saves_the_state_it_was_loaded_from(recording: Recording) -> None:
    pool = recording.game.pool()
    for place in recording.moments.values():
        pool.load_state([recording.states[place]])

        assert pool.save_state() == [recording.states[place]]
    pool.close()


def test_a_state_goes_on_in_the_env_it_was_saved_in(recording: Recording) -> None:
    pool = recording.game.pool()
    pool.reset(seed=11)
    for name, place in recording.moments.items():
        play(pool, recording.game, 0, 7)  # something else, from wherever it is
        pool.load_state([recording.states[place]])

        assert np.array_equal(pool.observations()[0], recording.results[place].obs), name
        steps = min(FOLLOWED, STEPS - place)
        expected = recording.results[place + 1 : place + 1 + steps]
        assert_same(play(pool, recording.game, place, steps), expected, name)
    pool.close()


def test_a_state_goes_on_in_another_env_of_a_pool_with_other_threads(recording: Recording) -> None:
    game, envs = recording.game, 3
    moments = list(recording.moments.items())
    moments += moments[: -len(moments) % envs]
    pool = game.pool(envs, threads=2)
    for group in range(0, len(moments), envs):
        some = [moments[group + (env + group // envs) % envs] for env in range(envs)]
        pool.load_state([recording.states[place] for _, place in some])
        for step in range(FOLLOWED):
            actions = [game.actions[(place + step) % STEPS] for _, place in some]
            for env, seen in rows(*pool.step(np.array(actions))):
                name, place = some[env]
                if place + step < STEPS:
                    assert_same([seen], [recording.results[place + step + 1]], f"{name}, env {env}, step {step}")
    pool.close()


OTHER_PROCESS = """
import pickle, sys
import fastrl
name, protocol, rules, states, actions = pickle.load(sys.stdin.buffer)
pool = fastrl.AtariPool(name, 1, protocol, threads=1, **rules)
played = []
for state, own_actions in zip(states, actions):
    pool.load_state([state])
    played.append((pool.observations(), [pool.step([action]) for action in own_actions]))
pickle.dump(played, sys.stdout.buffer)
"""


def test_a_state_goes_on_in_another_process(recording: Recording) -> None:
    game = recording.game
    places = list(recording.moments.values())
    actions = [game.actions[place : place + FOLLOWED] for place in places]
    job = pickle.dumps((game.name, game.protocol, game.rules, [recording.states[place] for place in places], actions))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-P", "-W", "ignore", "-c", OTHER_PROCESS]  # -P: not the source tree
    done = subprocess.run(command, input=job, stdout=subprocess.PIPE, check=True, env=environment, timeout=120)

    for (name, place), (first, played) in zip(recording.moments.items(), pickle.loads(done.stdout), strict=True):
        assert np.array_equal(first[0], recording.results[place].obs), name
        expected = recording.results[place + 1 : place + 1 + len(played)]
        assert_same([only(results) for results in played], expected, name)


def test_a_state_survives_many_saves_and_loads_in_a_row(recording: Recording) -> None:
    """Each load must leave nothing behind that the next one could trip over."""
    pools = [recording.game.pool(), recording.game.pool()]
    begin = 12
    [state] = recording.states[begin : begin + 1]
    for place in range(begin, begin + 60):
        pool = pools[place % 2]
        pool.load_state([state])
        assert_same(play(pool, recording.game, place, 1), recording.results[place + 1 : place + 2], f"place {place}")
        [state] = pool.save_state()
    for pool in pools:
        pool.close()


def test_envs_that_played_the_same_have_the_same_digest_whenever_they_were_saved_and_loaded(
    recording: Recording,
) -> None:
    game = recording.game
    never, often, other = (game.pool() for _ in range(3))
    for pool, seed in ((never, 11), (often, 11), (other, 12)):
        pool.reset(seed=seed)
    seen: list[str] = []
    for place, action in enumerate(game.actions[:300]):
        for pool in (never, often, other):
            pool.step(np.array([action]))
        if place % 7 == 0 or place in recording.moments.values():
            often.load_state(often.save_state())
        (digest,) = never.state_digest()
        assert often.state_digest() == [digest], f"step {place}"
        assert other.state_digest() != [digest]
        seen.append(digest)

    assert len(set(seen)) == len(seen)  # no two moments are the same
    for pool in (never, often, other):
        pool.close()


def test_states_stay_small(recording: Recording, record_property: Callable[[str, object], None]) -> None:
    sizes = [len(state) for state in recording.states]
    record_property("state_bytes", f"{min(sizes)}..{max(sizes)}")
    print(f"{recording.game.name} under {recording.game.protocol}: {min(sizes):,} to {max(sizes):,} bytes")

    assert max(sizes) < 400_000


def test_a_game_that_the_engine_restores_wrongly_goes_on_exactly() -> None:
    actions = np.random.default_rng(4).integers(18, size=200).tolist()
    pool = AtariPool("yars_revenge", 1, "sb3", threads=1, sticky=0.25)
    pool.reset(seed=2)
    for action in actions[:100]:
        pool.step(np.array([action]))
    states = pool.save_state()
    expected = [only(pool.step(np.array([action]))) for action in actions[100:]]
    pool.load_state(states)

    assert_same([only(pool.step(np.array([action]))) for action in actions[100:]], expected, "yars_revenge")
    pool.close()


def test_states_do_not_grow_with_the_length_of_a_game() -> None:
    pool = AtariPool("freeway", 1, "dopamine", threads=1)
    pool.reset(seed=0)
    sizes = []
    for _ in range(3):
        for _ in range(400):
            pool.step(np.array([1]))
        sizes.append(len(pool.save_state()[0]))
    pool.close()

    assert max(sizes) < min(sizes) + 2_000


# ---- What is refused


@pytest.fixture(scope="module")
def saved() -> Iterator[tuple[AtariPool, bytes]]:
    pool = AtariPool("breakout", 2, "sb3", threads=1)
    pool.reset(seed=1)
    pool.step(np.array([1, 2]))
    yield pool, pool.save_state()[1]
    pool.close()


def assert_refused(pool: AtariPool, state: bytes, reason: str = "") -> None:
    before = pool.save_state()
    with pytest.raises(ValueError, match=rf"load_state: env 1 \(breakout\): .*{reason}"):
        pool.load_state([state], [1])
    assert pool.save_state() == before  # the env is as it was


def test_every_changed_byte_is_noticed(saved: tuple[AtariPool, bytes]) -> None:
    pool, state = saved
    random = np.random.default_rng(0)
    places = {*range(48), *range(len(state) - 24, len(state)), *random.integers(len(state), size=60).tolist()}
    for place in sorted(places):
        damaged = bytearray(state)
        damaged[place] ^= int(random.integers(1, 256))
        assert_refused(pool, bytes(damaged))


def test_a_state_that_was_cut_or_added_to_is_noticed(saved: tuple[AtariPool, bytes]) -> None:
    pool, state = saved
    random = np.random.default_rng(1)
    for length in (0, 1, 7, 8, 9, 20, len(state) - 9, len(state) - 1, *random.integers(len(state), size=20).tolist()):
        assert_refused(pool, state[:length])
    assert_refused(pool, state + b"\0")
    assert_refused(pool, state[1:])
    assert_refused(pool, state * 2)


def test_bytes_of_something_else_are_noticed(saved: tuple[AtariPool, bytes]) -> None:
    pool, _ = saved
    for other in (b"\0" * 1000, b"\xff" * 1000, pickle.dumps({"a": 1}), np.random.default_rng(2).bytes(50_000)):
        assert_refused(pool, other)


@pytest.mark.parametrize(
    ("arguments", "rules"),
    [
        (("pong", 1, "sb3"), {}),
        (("breakout", 1, "nature"), {}),
        (("breakout", 1, "sb3"), {"sticky": 0.25}),
        (("breakout", 1, "sb3"), {"frame_skip": 3}),
        (("breakout", 1, "sb3"), {"stack": 3}),
        (("breakout", 1, "sb3"), {"max_frames": 1000}),
        (("breakout", 1, "sb3"), {"full_actions": True}),
        (("breakout", 1, "sb3"), {"life_loss": "ignored"}),
        (("breakout", 1, "sb3"), {"mode": 4}),
        (("breakout", 1, "sb3"), {"difficulty": 1}),
    ],
)
def test_a_state_of_other_rules_or_another_game_is_refused(
    saved: tuple[AtariPool, bytes], arguments: tuple[Any, ...], rules: dict[str, Any]
) -> None:
    other = AtariPool(*arguments, threads=1, **rules)
    other.reset(seed=1)
    [state] = other.save_state()
    other.close()

    assert_refused(saved[0], state, f"saved under other rules: {arguments[0]}/{arguments[2]}/")


def test_a_state_of_another_ale_py_is_refused(saved: tuple[AtariPool, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    real = rules_module.importlib.metadata.version
    monkeypatch.setattr(
        rules_module.importlib.metadata, "version", lambda name: "0.12.9" if name == "ale-py" else real(name)
    )
    other = AtariPool("breakout", 1, "sb3", threads=1)
    monkeypatch.undo()
    other.reset(seed=1)
    [state] = other.save_state()
    other.close()

    assert_refused(saved[0], state, "saved under other rules")


def test_a_state_of_equal_rules_under_another_threads_and_autoreset_is_accepted(saved: tuple[AtariPool, bytes]) -> None:
    pool, state = saved
    expected = pool.observations()[1]
    for others in ({"autoreset": "same_step"}, {"autoreset": "disabled"}, {"cpu_path": "portable"}):
        other = AtariPool("breakout", 1, "sb3", threads=1, **others)
        other.load_state([state])

        assert np.array_equal(other.observations()[0], expected)
        other.close()


def test_states_before_a_damaged_one_are_loaded_and_the_rest_is_not(saved: tuple[AtariPool, bytes]) -> None:
    pool, state = saved
    before = pool.save_state()
    with pytest.raises(ValueError, match=r"env 1 \(breakout\)"):
        pool.load_state([state, state[:-1]])
    after = pool.save_state()

    assert after == [state, before[1]]
    pool.load_state(before)
