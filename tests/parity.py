"""Play pools beside the references of their protocols and compare every byte.

    python tests/parity.py                                   everything: about 40 minutes on one core
    python tests/parity.py --quick                           a sample, about two minutes
    python tests/parity.py --games pong --protocols sb3,nature --steps 500 --seed 3

Every game is played under every protocol, with and without sticky actions, and once more with a small limit of frames
and often with another rule replaced, so that games are also cut inside a step, the no-ops and a reset. Each of these
cells drives its pool in one of ``WAYS``: with one or more threads, with send and recv in any order, saved and loaded
on the way in this and in another process. Compared at every step and reset of every env: observation, reward, both
flags, lives, frame numbers, and score, frames and steps of a game that ended.

A cell is decided by its name and ``--seed`` alone, so a difference is played again with the games, protocols, steps
and seed that were printed with it. Under pytest, tests/test_parity.py plays a small sample.
"""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import math
import os
import pickle
import subprocess
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from reference import ORACLES, ReferenceEnv, Seen
from versions import as_table, versions

from fastrl import AtariPool
from fastrl.engine.games import cacheable_noops, rom_md5, rom_path

GAMES = (
    # The six that everybody measures, and those whose resets or states are known to be awkward.
    *("pong", "breakout", "space_invaders", "ms_pacman", "seaquest", "qbert", "tetris", "freeway", "beam_rider"),
    *("frostbite", "hero", "kung_fu_master", "demon_attack"),
    # Screens of 250, 230, 214, 220, 250 and 250 rows.
    *("air_raid", "journey_escape", "carnival", "pooyan", "keystone_kapers", "pacman"),
    # Lives that start at 0, no FIRE, paddles, no lives at all, few and many actions, long scenes without reward.
    *("amidar", "asterix", "crazy_climber", "kaboom", "boxing", "montezuma_revenge", "private_eye", "video_pinball"),
    # Rewards while nothing is done, a reset that takes 134 frames of the game, states that the engine restores wrongly.
    *("skiing", "name_this_game", "yars_revenge", "gopher", "up_n_down"),
)
QUICK_GAMES = ("breakout", "seaquest")

# What is compared: every protocol as it is, and Gymnasium's option of ending an episode with a life.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ORACLES},
    "gymnasium, a life": ("gymnasium", {"life_loss": "restarts"}),
}

# Rules that a user may replace and the protocol's reference has, too. Dopamine's preprocessing never shows a new
# screen at a frame skip of 1, and its no-ops do not exist.
_ANY: list[dict[str, Any]] = [{"frame_skip": 2}, {"frame_skip": 3}, {"frame_skip": 5}, {"stack": 1}, {"stack": 3}]
_NOOPS: list[dict[str, Any]] = [{"frame_skip": 1}, {"noop_max": 0}, {"noop_max": 5}, {"noop_max": 60}]
_LIVES: list[dict[str, Any]] = [{"life_loss": "ignored"}, {"reward": "raw"}, {"full_actions": True}]
REPLACEABLE: dict[str, list[dict[str, Any]]] = {
    "nature": [*_ANY, *_NOOPS, *_LIVES],
    "sb3": [*_ANY, *_NOOPS, *_LIVES],
    "cleanrl": [*_ANY, *_NOOPS, *_LIVES],
    "cleanrl-0.28": [*_ANY, *_NOOPS, *_LIVES],
    "gymnasium": [*_ANY, *_NOOPS, {"reward": "sign"}, {"full_actions": True}],
    "dopamine": [*_ANY, {"reward": "raw"}, {"life_loss": "restarts"}],
    "machado": [*_ANY, {"reward": "raw"}, {"life_loss": "restarts"}],
}
# No-op counts that can be forced: the libraries' own wrapper refuses 0.
LEAST_NOOPS = {"nature": 0, "gymnasium": 0, "sb3": 1, "cleanrl": 1, "cleanrl-0.28": 1}


@dataclass(frozen=True)
class Way:
    """How a pool is driven."""

    threads: int
    envs: int
    batch_size: int | None = None  # given: send and recv
    saving: str | None = None  # "here": saved and loaded on the way; "elsewhere": also by another process


WAYS = {
    "step, 1 env": Way(1, 1),
    "step, 1 thread": Way(1, 2),
    "step, 2 threads": Way(2, 2),
    "step, 8 threads": Way(8, 8),
    "send/recv, 1 of 4": Way(2, 4, batch_size=1),
    "send/recv, 3 of 4": Way(8, 4, batch_size=3),
    "saved and loaded": Way(2, 2, saving="here"),
    "saved, loaded elsewhere": Way(1, 2, saving="elsewhere"),
}


@dataclass(frozen=True)
class Cell:
    """One pool beside its references."""

    game: str
    variant: str
    way: str
    rules: dict[str, Any]  # that replace the protocol's own
    steps: int  # of each env
    seed: int
    noops: tuple[int, ...] | None = None  # the first counts of every env; None: drawn

    @property
    def protocol(self) -> str:
        return VARIANTS[self.variant][0]

    @property
    def all_rules(self) -> dict[str, Any]:
        return {**VARIANTS[self.variant][1], **self.rules}

    def __str__(self) -> str:
        noops = "" if self.noops is None else f", no-ops {list(self.noops)}"
        return f"{self.game} under {self.variant} {self.rules}, {self.way}, {self.steps} steps, seed {self.seed}{noops}"


class Difference(AssertionError):
    """A pool showed something else than the reference; the message says what, where and when."""


@dataclass
class Tally:
    """What was compared, and which of the rare moments were met."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, seen: Seen, was_reset: bool, frames: int, frame_skip: int) -> None:
        c = self.counts
        c["observations"] += 1
        c["bytes"] += seen.obs.nbytes
        c["frames"] += frames
        if was_reset:
            c["resets"] += 1
            c["games ended inside a reset"] += seen.ended_game is not None
            return
        c["steps"] += 1
        c["steps cut short"] += frames < frame_skip
        c["lives lost"] += seen.terminated and seen.ended_game is None
        c["games over"] += seen.terminated and seen.ended_game is not None
        c["truncated"] += seen.truncated


# ---- What pools show, env by env


def rows(obs: Any, reward: Any, terminated: Any, truncated: Any, info: dict[str, Any]) -> Iterator[tuple[int, Seen]]:
    """The results of a step, one env at a time, with its number."""
    ended = info.get("_game_return")
    for place, env in enumerate(info["env_id"]):
        game = None
        if ended is not None and ended[place]:
            game = (float(info["game_return"][place]), int(info["game_frames"][place]), int(info["game_steps"][place]))
        yield (
            int(env),
            Seen(
                obs[place],
                float(reward[place]),
                bool(terminated[place]),
                bool(truncated[place]),
                int(info["lives"][place]),
                int(info["frame_number"][place]),
                int(info["episode_frame_number"][place]),
                game,
            ),
        )


def reset_rows(obs: Any, info: dict[str, Any]) -> Iterator[tuple[int, Seen]]:
    """The results of a reset, one env at a time."""
    none = np.zeros(len(obs))
    return rows(obs, none, none, none, info)


def first_difference(pool: Seen, reference: Seen) -> str | None:
    """The first field on which the two disagree, in words."""
    for name in ("reward", "terminated", "truncated", "lives", "frame_number", "episode_frame_number", "ended_game"):
        ours, theirs = getattr(pool, name), getattr(reference, name)
        if ours != theirs:
            return f"{name}: pool {ours}, reference {theirs}"
    if pool.obs.shape != reference.obs.shape:
        return f"obs: pool has shape {pool.obs.shape}, reference {reference.obs.shape}"
    if np.array_equal(pool.obs, reference.obs):
        return None
    where = np.argwhere(pool.obs != reference.obs)
    frame, row, column = where[0]
    return (
        f"obs: {len(where)} of {pool.obs.size} pixels; first: frame {frame} of the stack, row {row}, column {column}: "
        f"pool {pool.obs[frame, row, column]}, reference {reference.obs[frame, row, column]}"
    )


def make_pool(cell: Cell, threads: int | None = None, protocol: Any = None, **others: Any) -> AtariPool:
    """The cell's pool; or, for tests that plant a mistake, one that differs from it."""
    way = WAYS[cell.way]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # more threads than cores is the point
        return AtariPool(
            cell.game,
            way.envs,
            cell.protocol if protocol is None else protocol,
            threads=way.threads if threads is None else threads,
            batch_size=way.batch_size,
            **{"seed": None, **cell.all_rules, **others},
        )


class Referee:
    """Plays the references in step with a pool and compares."""

    def __init__(self, cell: Cell, make_reference: Callable[..., Any] = ReferenceEnv) -> None:
        self.cell = cell
        envs = WAYS[cell.way].envs
        self.references = [make_reference(cell.protocol, cell.game, **cell.all_rules) for _ in range(envs)]
        self.env_at = list(range(envs))  # which env is in which place of the pool; loading states moves them
        self.step_of = [0] * envs
        self.last: list[Seen | None] = [None] * envs
        self.tally = Tally()
        self.until_s = math.inf  # of the monotonic clock: no further step is begun after it
        self._action_random = [_random(cell, "actions", env) for env in range(envs)]
        self._action = [0] * envs

    def close(self) -> None:
        most_noops_jumped = _most_noops_jumped(self.cell)
        for reference in self.references:
            for seed, noops in reference.console.begun_games:
                self.tally.counts["games begun"] += 1
                jumped = seed is None and noops is not None and 2 <= noops <= most_noops_jumped
                self.tally.counts["games begun by a possible jump"] += jumped
            reference.close()

    def next_action(self, place: int) -> int:
        """Random, often held for a while: some games show little of themselves to a trembling joystick."""
        env = self.env_at[place]
        random = self._action_random[env]
        if random.random() < 0.6:
            self._action[env] = int(random.integers(self.references[env].actions))
        return self._action[env]

    def next_actions(self) -> npt.NDArray[np.int64]:
        return np.array([self.next_action(place) for place in range(len(self.env_at))])

    def check_step(self, place: int, seen: Seen, action: int) -> None:
        reference = self.references[self.env_at[place]]
        was_reset = reference.resets_next
        self._check(place, seen, lambda: reference.step(action), was_reset)

    def check_steps(self, results: Any, actions: Sequence[int]) -> None:
        for place, seen in rows(*results):
            self.check_step(place, seen, int(actions[place]))

    def check_reset(self, place: int, seen: Seen, seed: int | None, noops: Sequence[int] | None) -> None:
        reference = self.references[self.env_at[place]]
        after_an_episode = seed is None and reference.resets_next
        reset = reference.reset if after_an_episode else reference.begin_anew
        self._check(place, seen, lambda: reset(seed, noops), True)

    def check_unchanged(self, place: int, obs: npt.NDArray[np.uint8]) -> None:
        """That an observation is still what it was at the last comparison."""
        last = self.last[self.env_at[place]]
        assert last is not None
        self._refuse(place, first_difference(dataclasses.replace(last, obs=obs), last))

    def _check(self, place: int, seen: Seen, play: Callable[[], Seen], was_reset: bool) -> None:
        env = self.env_at[place]
        last = self.last[env]
        expected = play()
        frames = expected.frame_number - (last.frame_number if last is not None else 0)
        if frames < 0:  # a seed loads the cartridge anew and counts from 0
            frames = expected.frame_number
        self.last[env] = expected
        self.tally.add(expected, was_reset, frames, self.references[env].frame_skip)
        self._refuse(place, first_difference(seen, expected), was_reset)
        self.step_of[env] += 1

    def _refuse(self, place: int, difference: str | None, was_reset: bool = False) -> None:
        if difference is None:
            return
        env = self.env_at[place]
        what = "reset" if was_reset else "step"
        raise Difference(f"{self.cell}: env {env}, {what} {self.step_of[env]}: {difference}")


def _random(cell: Cell, *use: str | int) -> np.random.Generator:
    return np.random.default_rng([cell.seed, zlib.crc32(f"{cell.game}/{cell.variant}/{cell.rules}/{use}".encode())])


def _most_noops_jumped(cell: Cell) -> int:
    """Up to how many no-ops the pool may jump over, where resets need not be emulated."""
    rules = {**ORACLES[cell.protocol].rules, **cell.all_rules}
    return cacheable_noops(cell.game, rom_md5(rom_path(cell.game))) if rules["sticky"] == 0.0 else 0


# ---- The ways to drive a pool


def play_cell(
    cell: Cell,
    make_reference: Callable[..., Any] = ReferenceEnv,
    most_seconds: float | None = None,
    **pool_arguments: Any,
) -> Tally:
    """Play a cell; raises Difference at the first one.

    Args:
        cell: which.
        make_reference: another oracle, for tests that plant a mistake.
        most_seconds: after which no further step is begun; resets of some games take the reference half a second.
        pool_arguments: for the pool alone, likewise.
    """
    way = WAYS[cell.way]
    referee = Referee(cell, make_reference)
    referee.until_s = math.inf if most_seconds is None else time.monotonic() + most_seconds
    try:
        pool = make_pool(cell, **pool_arguments)
        noops = None if cell.noops is None else [list(cell.noops)] * way.envs
        obs, info = pool.reset(seed=cell.seed, options={} if noops is None else {"noops": noops})
        for env, seen in reset_rows(obs, info):
            referee.check_reset(env, seen, cell.seed + env, cell.noops)
        if way.batch_size is not None:
            play_in_any_order(pool, referee, cell.steps)
        elif way.saving is not None:
            pool = play_with_saving(pool, referee, cell)
        else:
            play_with_resets(pool, referee, cell)
        pool.close()
    finally:
        referee.close()
    return referee.tally


def play_steps(pool: AtariPool, referee: Referee, steps: int) -> None:
    for _ in range(steps):
        if time.monotonic() > referee.until_s:
            return
        actions = referee.next_actions()
        referee.check_steps(pool.step(actions), actions)


def play_with_resets(pool: AtariPool, referee: Referee, cell: Cell) -> None:
    """Steps, and now and then a reset of some envs, with and without seeds and no-op counts."""
    random = _random(cell, "resets")
    left = cell.steps
    while left > 0 and time.monotonic() < referee.until_s:
        steps = min(left, int(random.integers(1, max(2, cell.steps // 3))))
        play_steps(pool, referee, steps)
        left -= steps
        mask = random.random(pool.num_envs) < 0.6
        mask[random.integers(pool.num_envs)] = True
        # Few seeds: each loads a cartridge, and that takes as long as a hundred steps.
        seeds: list[int | None] = [
            int(random.integers(1000)) if random.random() < 0.15 else None for _ in range(pool.num_envs)
        ]
        options: dict[str, Any] = {"reset_mask": mask}
        least = LEAST_NOOPS.get(cell.protocol)
        noops: list[list[int]] | None = None
        if least is not None and cell.rules.get("noop_max", 1) > 0 and random.random() < 0.5:
            noops = [random.integers(least, 31, size=random.integers(1, 4)).tolist() for _ in range(pool.num_envs)]
            options["noops"] = noops
        obs, info = pool.reset(seed=seeds, options=options)  # type: ignore[arg-type]
        for env, seen in reset_rows(obs, info):
            if mask[env]:
                referee.check_reset(env, seen, seeds[env], None if noops is None else noops[env])
            else:
                referee.check_unchanged(env, seen.obs)


def play_in_any_order(pool: AtariPool, referee: Referee, steps: int) -> None:
    """Send and recv: envs are sent in any order, some are held back, and results come as they are ready."""
    random = _random(referee.cell, "order")
    idle = list(range(pool.num_envs))
    sent: dict[int, int] = {}
    checked = 0
    while checked < steps * pool.num_envs and time.monotonic() < referee.until_s:
        random.shuffle(idle)
        needed = max(0, pool.batch_size - len(sent))
        count = int(random.integers(needed, len(idle) + 1))
        now, idle = idle[:count], idle[count:]
        if now:
            actions = [referee.next_action(env) for env in now]
            sent.update(zip(now, actions, strict=True))
            pool.send(np.array(actions), np.array(now))
        for env, seen in rows(*pool.recv()):
            referee.check_step(env, seen, sent.pop(env))
            idle.append(env)
            checked += 1


def play_with_saving(pool: AtariPool, referee: Referee, cell: Cell) -> AtariPool:
    """Steps, and now and then all envs are saved and go on elsewhere. Returns the pool in which they ended."""
    random = _random(cell, "saving")
    left = cell.steps
    while left > 0 and time.monotonic() < referee.until_s:
        # Often after a few steps, as states near a reset are the awkward ones.
        steps = min(left, int(random.integers(1, 6) if random.random() < 0.5 else random.integers(1, 2 + left // 2)))
        play_steps(pool, referee, steps)
        left -= steps
        states = pool.save_state()
        went_on = random.integers(4)
        if went_on == 0:
            continue  # saving has changed nothing
        if went_on == 1:  # play on without anybody looking, then take everything back
            for _ in range(random.integers(1, 60)):
                pool.step(random.integers(int(pool.single_action_space.n), size=pool.num_envs))
            pool.load_state(states)
        elif went_on == 2 or WAYS[cell.way].saving == "here":  # other places in another pool
            pool.close()
            pool = make_pool(cell, threads=int(random.integers(1, 3)))
            if random.random() < 0.5:
                pool.reset(seed=int(random.integers(100)))
            places = random.permutation(pool.num_envs)
            pool.load_state(states, places)
            referee.env_at = [referee.env_at[i] for i in np.argsort(places)]
        else:  # another process, which hands its states back
            steps = min(left, int(random.integers(1, 200)))
            actions = [referee.next_actions() for _ in range(steps)]
            first_obs, played, states = other_process().play(cell, states, actions)
            for place, obs in enumerate(first_obs):
                referee.check_unchanged(place, obs)
            for step, results in zip(actions, played, strict=True):
                referee.check_steps(results, step)
            left -= steps
            pool.load_state(states)
        for place, obs in enumerate(pool.observations()):
            referee.check_unchanged(place, obs)
    return pool


# ---- The other process


class OtherProcess:
    """A process of its own that continues from saved states."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        atexit.register(self.close)

    def close(self) -> None:
        self._process.communicate()

    def play(self, cell: Cell, states: list[bytes], actions: list[Any]) -> tuple[Any, list[Any], list[bytes]]:
        """The observations right after loading, the results of every step, and the states at the end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((cell, states, actions), self._process.stdin)
        self._process.stdin.flush()
        answer = pickle.load(self._process.stdout)
        if isinstance(answer, Exception):
            raise answer
        return answer


_other_process: OtherProcess | None = None


def other_process() -> OtherProcess:
    global _other_process
    if _other_process is None:
        _other_process = OtherProcess()
    return _other_process


def serve() -> None:
    """The other process: ends when its input does."""
    while True:
        try:
            cell, states, actions = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            pool = make_pool(cell)
            pool.load_state(states)
            answer: Any = (pool.observations(), [pool.step(step) for step in actions], pool.save_state())
            pool.close()
        except Exception as error:
            answer = error
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()


# ---- The matrix


def plan(games: Sequence[str], variants: Sequence[str], steps: int, seed: int) -> list[Cell]:
    """All cells, in an order in which a part is a fair sample of the whole."""
    cells = []
    for game in games:
        for variant in variants:
            for sticky, limited in ((0.0, False), (0.25, False), (None, True)):
                random = np.random.default_rng([seed, zlib.crc32(f"{game}/{variant}/{sticky}/{limited}".encode())])
                cells.append(planned_cell(game, variant, sticky, limited, steps, random))
    np.random.default_rng(seed).shuffle(cells)  # type: ignore[arg-type]
    return cells


def planned_cell(
    game: str, variant: str, sticky: float | None, limited: bool, steps: int, random: np.random.Generator
) -> Cell:
    """A cell of one game under one protocol; the rest is drawn.

    Args:
        game: its name.
        variant: one of VARIANTS.
        sticky: None draws it.
        limited: gives games a small limit of frames, and every other cell another rule.
        steps: of each env in a pool of two.
        random: what draws.
    """
    way = str(random.choice(list(WAYS)))
    protocol = VARIANTS[variant][0]
    rules: dict[str, Any] = {"sticky": float(random.choice([0.0, 0.25])) if sticky is None else sticky}
    noops = None
    if limited:
        # Below 60 frames games are cut inside the no-ops and the reset.
        steps = max(1, steps // 5)
        rules["max_frames"] = int(random.integers(2, 60) if random.random() < 0.3 else random.integers(100, 1200))
        if random.random() < 0.5:
            rules.update(REPLACEABLE[protocol][random.integers(len(REPLACEABLE[protocol]))])
    if protocol in LEAST_NOOPS and rules.get("noop_max", 1) > 0 and random.random() < 0.4:
        noops = tuple(random.integers(LEAST_NOOPS[protocol], 31, size=random.integers(1, 6)).tolist())
    # A cell costs the same whatever the number of its envs.
    steps = max(1, steps * 2 // WAYS[way].envs)
    return Cell(game, variant, way, rules, steps, int(random.integers(10_000)), noops)


COLUMNS = (
    *("cells", "steps", "resets", "frames", "bytes", "lives lost", "games over", "truncated", "steps cut short"),
    *("games begun", "games ended inside a reset", "games begun by a possible jump"),
)


def table(title: str, tallies: dict[str, Counter[str]]) -> str:
    """A Markdown table, one row a name."""
    lines = [f"| {title} | " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * len(COLUMNS) + "|"]
    for name, counts in tallies.items():
        lines.append(f"| {name} | " + " | ".join(f"{counts[column]:,}" for column in COLUMNS) + " |")
    return "\n".join(lines)


def report(
    arguments: argparse.Namespace,
    done: list[tuple[Cell, Counter[str]]],
    planned: int,
    failed: list[str],
    seconds: float,
) -> str:
    """What was run and what came out, in Markdown."""
    by: dict[str, dict[str, Counter[str]]] = {"protocol": {}, "way": {}, "game": {}}
    everything: Counter[str] = Counter()
    for cell, counts in done:
        counted = Counter({"cells": 1, **counts})
        everything += counted
        keys = {"protocol": f"{cell.variant}, sticky {cell.rules['sticky']}", "way": cell.way, "game": cell.game}
        for kind, key in keys.items():
            by[kind].setdefault(key, Counter()).update(counted)
    result = f"{len(failed)} DIFFERENCES" if failed else "no difference"
    lines = [
        "# Pools beside their references",
        "",
        f"`python tests/parity.py --steps {arguments.steps} --seed {arguments.seed}`: {len(done)} of {planned} cells, "
        f"{everything['observations']:,} observations ({everything['bytes']:,} bytes) of {everything['frames']:,} "
        f"emulated frames compared in {seconds / 60:.0f} minutes: **{result}**.",
        "",
        as_table(versions("ale-py", "gymnasium", "stable-baselines3", "opencv-python-headless", "numpy")),
        "",
        *(f"- {text}" for text in failed),
        "Compared to the byte at every step and reset: observation, reward, terminated, truncated, lives, frame",
        "number, frame number in the game; and score, frames and steps of each game that ended.",
        "",
        table("all", {"all": everything}),
        "",
    ]
    for kind, tallies in by.items():
        lines += [table(kind, dict(sorted(tallies.items()))), ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", default=",".join(GAMES), help="names as ale-py writes them, with commas between")
    parser.add_argument("--protocols", default="", help="names with commas between; none: all")
    parser.add_argument("--steps", type=int, default=1200, help="of each env in a cell of two envs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two games, 200 steps")
    parser.add_argument("--time-budget-s", type=float, default=float("inf"), help="begin no cell after so many seconds")
    parser.add_argument("--output", type=Path, help="a Markdown file for the summary")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return 0
    if arguments.quick:
        arguments.games, arguments.steps = ",".join(QUICK_GAMES), 200
    asked = [name for name in arguments.protocols.split(",") if name]
    if unknown := [name for name in asked if name not in ORACLES]:
        parser.error(f"--protocols: {unknown} are unknown; known: {', '.join(ORACLES)}")
    variants = [name for name, (protocol, _) in VARIANTS.items() if not asked or protocol in asked]
    cells = plan(arguments.games.split(","), variants, arguments.steps, arguments.seed)

    began = time.monotonic()
    done: list[tuple[Cell, Counter[str]]] = []
    failed: list[str] = []
    for number, cell in enumerate(cells):
        if time.monotonic() - began > arguments.time_budget_s:
            print(f"the time budget is spent: {len(cells) - number} cells are left out", flush=True)
            break
        try:
            done.append((cell, play_cell(cell).counts))
        except Difference as difference:
            failed.append(str(difference))
            print(f"\nDIFFERENCE (--seed {arguments.seed} --steps {arguments.steps}): {difference}", flush=True)
        if sys.stderr.isatty() or number % 50 == 49:
            print(
                f"\r{number + 1} of {len(cells)} cells, {time.monotonic() - began:.0f} s, {len(failed)} differences",
                end="",
                file=sys.stderr,
                flush=True,
            )
    text = report(arguments, done, len(cells), failed, time.monotonic() - began)
    print("\n" + text)
    if arguments.output:
        arguments.output.write_text(text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
