"""How good a policy is: full games, true scores, by the rules of the protocol that it was trained under."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from fastrl.engine.atari_pool import AtariPool
from fastrl.engine.games import find_game
from fastrl.engine.recorded_envs import is_atari, make_vectors
from fastrl.runs import seeds
from fastrl.runs.scores import human_normalised

Act = Callable[[npt.NDArray[Any]], npt.NDArray[np.int64]]

# Games side by side: enough to fill a network's batch, and little memory.
_MOST_ENVS = 32


@dataclass(frozen=True)
class Evaluation:
    """Full games of one policy."""

    returns: list[float]
    lengths: list[int]  # steps

    def summary(self) -> dict[str, float]:
        """The numbers that are told."""
        returns = np.array(self.returns)
        return {
            "episodes": len(returns),
            "mean": float(returns.mean()),
            "median": float(np.median(returns)),
            "std": float(returns.std()),
            "min": float(returns.min()),
            "max": float(returns.max()),
            "length_mean": float(np.mean(self.lengths)),
        }


def make_envs(env: str, rules: Mapping[str, Any] | None, num_envs: int, seed: int, threads: int | None) -> Any:
    """Envs to measure in: whole games, in their own score.

    Args:
        env: which.
        rules: arguments for the pool, its protocol included; None: not an Atari game.
        num_envs: side by side.
        seed: of the pool.
        threads: of the pool.
    """
    if rules is None:
        return make_vectors(env, num_envs, threads)
    return AtariPool(env, num_envs, threads=threads, seed=seed, autoreset="same_step", **rules)


def evaluate(
    act: Act | None,
    env: str,
    rules: Mapping[str, Any] | None,
    *,
    episodes: int,
    seed: int,
    threads: int | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Play ``episodes`` full games.

    Each env plays a fixed number of games, so that short games are not preferred.

    Args:
        act: what to do in observations (n, ...): numbers of actions, from 0, or actions; None: at random.
        env: see :func:`make_envs`.
        rules: see :func:`make_envs`.
        episodes: how many.
        seed: of the envs; game i of env j is the same for equal seeds.
        threads: that emulate.
        watch: is told after every step how many games have ended, and of how many.
    """
    rounds = -(-episodes // _MOST_ENVS)
    num_envs = -(-episodes // rounds)
    owed = np.full(num_envs, episodes // num_envs)
    owed[: episodes % num_envs] += 1
    envs = make_envs(env, rules, num_envs, seed, threads)
    space = envs.single_action_space
    first = int(space.start) if isinstance(space, spaces.Discrete) else 0
    if act is None:
        act = at_random(envs, seed)
    found: list[tuple[int, int, float, int]] = []  # env, which game of it, return, steps
    played = np.zeros(num_envs, np.int64)
    returns, steps = np.zeros(num_envs), np.zeros(num_envs, np.int64)
    try:
        obs, _ = envs.reset(seed=seed)
        while (played < owed).any():
            obs, reward, terminated, truncated, info = envs.step(act(obs) + first)
            if rules is not None:
                over = info.get("_game_return", np.zeros(num_envs, bool))
                returns = info.get("game_return", returns)
                steps = info.get("game_steps", steps)
            else:
                returns, steps = returns + reward, steps + 1
                over = terminated | truncated
            for place in np.flatnonzero(over):
                if played[place] < owed[place]:
                    found.append((int(place), int(played[place]), float(returns[place]), int(steps[place])))
                    played[place] += 1
            if rules is None:
                returns, steps = np.where(over, 0.0, returns), np.where(over, 0, steps)
            if watch is not None:
                watch(len(found), episodes)
    finally:
        envs.close()
    found.sort()  # by env, not by who came first
    return Evaluation([score for _, _, score, _ in found], [length for _, _, _, length in found])


def epsilon_greedy(policy: Any, epsilon: float, seed: int) -> Act:
    """A policy that sometimes acts at random."""
    generator = seeds.generator(seed, "evaluation actions")

    def act(obs: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        # Envs of Gymnasium show no stack; the network has seen stacks of one.
        stacks = obs if obs.ndim > len(policy.obs_shape) else obs[:, None].astype(np.float32)
        chosen: npt.NDArray[np.int64] = policy.act(stacks, epsilon, generator)
        return chosen

    return act


def at_random(envs: Any, seed: int) -> Act:
    """Any action of each env, all alike, whatever the observations are.

    Args:
        envs: a vector of envs.
        seed: of what is drawn.
    """
    single = envs.single_action_space
    if isinstance(single, spaces.Discrete):
        generator = seeds.generator(seed, "evaluation actions")
        return lambda obs: generator.integers(single.n, size=envs.num_envs)
    envs.action_space.seed(seeds.whole(seed, "evaluation actions"))
    return lambda obs: envs.action_space.sample()


def normalised(env: str, score: float, convention: str = "57") -> float | None:
    """Where ``score`` lies between random play (0) and a human (1); None where neither is known."""
    return human_normalised(find_game(env).name, score, convention) if is_atari(env) else None
