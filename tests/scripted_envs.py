"""Envs that do what a test says: observations, rewards and ends are given, actions are only remembered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastrl.engine.played_envs import Played


def played(
    obs: Any, reward: Sequence[float], terminated: Sequence[int] = (), truncated: Sequence[int] = (), cut: Any = None
) -> Played:
    """A step; ``terminated`` and ``truncated`` name envs, ``cut`` has the last observations of the latter."""
    over = np.zeros((2, len(reward)), bool)
    over[0, list(terminated)] = over[1, list(truncated)] = True
    return Played(np.asarray(obs), np.array(reward, np.float32), over[0], over[1], cut or {}, [])


class ScriptedEnvs:
    """Envs of a script of steps."""

    frames_per_step = 4
    rules_fingerprint = None

    def __init__(self, first: Any, steps: Sequence[Played], num_actions: int) -> None:
        self.first, self.steps, self.num_actions = np.asarray(first), list(steps), num_actions
        self.num_envs = len(self.first)
        self.obs_shape = self.first.shape[1:]
        self.actions: list[np.ndarray] = []

    def start(self, states: Any = None) -> np.ndarray:
        return self.first

    def step(self, actions: np.ndarray) -> Played:
        self.actions.append(actions)
        return self.steps[len(self.actions) - 1]

    def send(self, actions: np.ndarray) -> None:
        self.sent = actions

    def receive(self) -> Played:
        return self.step(self.sent)

    def save_state(self) -> list[bytes]:
        return [b""] * self.num_envs

    def state_digest(self) -> list[str]:
        return [""] * self.num_envs

    def close(self) -> None:
        pass


def rows(*numbers: float) -> np.ndarray:
    """Observations that are a number each."""
    return np.array(numbers, np.float32).reshape(-1, 1, 1)


def two_games() -> ScriptedEnvs:
    """States 1, 2, 3 and 4, 5, 6. The first game loses a life, the second is cut in state 9, both begin anew."""
    steps = [
        played(rows(2, 5), [1, 0]),
        played(rows(3, 6), [0, 1], terminated=[0], truncated=[1], cut={1: rows(9)[0]}),
        played(rows(7, 8), [1, -1]),
        played(rows(1, 1), [0, 0]),
    ]
    return ScriptedEnvs(rows(1, 4), steps, 2)


def random_games(steps: int, num_envs: int, shape: tuple[int, ...], num_actions: int, seed: int) -> ScriptedEnvs:
    """Noise to look at, rewards, ends and cuts, the same each time."""
    generator = np.random.default_rng(seed)

    def shown(count: int) -> np.ndarray:
        return generator.integers(0, 256, (count, *shape), dtype=np.uint8)

    first, script = shown(num_envs), []
    for _ in range(steps):
        kind = generator.random(num_envs)
        terminated, truncated = np.flatnonzero(kind < 0.05), np.flatnonzero((kind > 0.05) & (kind < 0.1))
        cut = {int(env): shown(1)[0] for env in truncated}
        reward = generator.choice([-1.0, 0.0, 1.0], num_envs)
        script.append(played(shown(num_envs), reward.tolist(), terminated.tolist(), truncated.tolist(), cut))
    return ScriptedEnvs(first, script, num_actions)
