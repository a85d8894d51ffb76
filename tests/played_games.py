"""Row R4 of docs/reliability.md in real games: every stack that is sampled is one that was acted on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

import fastrl
from fastrl.engine.protocol import PROTOCOLS

_ENVS = 4
_CAPACITY = 4000
_MAX_FRAMES = 600  # of a game: time limits are met, too


@dataclass
class Played:
    """What was compared; all of it was equal."""

    transitions: set[tuple[int, int]] = field(default_factory=set)
    ends: int = 0  # of episodes
    games: int = 0  # that ended

    def __str__(self) -> str:
        return described(len(self.transitions), self.ends, self.games)


def described(transitions: int, ends: int, games: int) -> str:
    """The line for what was found equal."""
    return f"{transitions:,} transitions in {games:,} games ({ends:,} episodes): 0 differences"


def compare_with_what_was_acted_on(
    game: str, protocol: str, autoreset: str, steps: int, look_every: int = 400, seed: int = 0
) -> Played:
    """Play at random, and compare samples with the stacks that actions were chosen on; of four envs, ``steps`` each."""
    made = fastrl.Replay(_CAPACITY, _ENVS, padding=PROTOCOLS[protocol].stack_padding, seed=seed)
    pool = fastrl.AtariPool(game, _ENVS, protocol, sink=made.sink(), max_frames=_MAX_FRAMES, autoreset=autoreset)
    rng = np.random.default_rng(seed)
    acted: dict[tuple[int, int], np.ndarray] = {}  # the stack that each step's action was chosen on
    played = Played()

    def note(obs: np.ndarray) -> None:
        assert np.array_equal(obs, made.stacks())
        for lane, end in enumerate(made.boundary()):
            acted[lane, end - 1] = obs[lane].copy()
            acted.pop((lane, end - 1 - _CAPACITY // _ENVS), None)  # overwritten

    def compare() -> None:
        for _ in range(20):
            batch = made.sample(64)
            for row, (lane, step) in enumerate(batch.index.tolist()):
                assert np.array_equal(batch.obs[row], acted[lane, step])
                assert np.array_equal(batch.next_obs[row], acted[lane, step + 1])
                played.transitions.add((lane, step))

    obs, _ = pool.reset(seed=seed)
    note(obs)
    for number in range(1, steps + 1):
        obs, _, terminated, truncated, info = pool.step(rng.integers(pool.num_actions, size=_ENVS))
        for lane in np.flatnonzero(info.get("_final_obs", np.zeros(_ENVS, bool))):
            acted[int(lane), made.boundary()[lane] - 2] = info["final_obs"][lane]
        note(obs)
        played.ends += int((terminated | truncated).sum())
        played.games += int(info.get("_game_return", np.zeros(_ENVS, bool)).sum())
        if number % look_every == 0:
            compare()
    pool.close()
    return played
