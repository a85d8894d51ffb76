"""Envs for learners that keep no replay: what they show, what a step brought, which games ended.

The same for Atari games and for any Gymnasium env with vectors as observations. Autoreset happens within the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from fastrl.engine.atari_pool import OBS_SIDE, AtariPool
from fastrl.engine.protocol import DEFAULT_PROTOCOL, DEFAULT_STACK, Protocol
from fastrl.engine.recorded_envs import (
    Game,
    ended_games,
    finite_floats,
    is_atari,
    make_gymnasium,
    named_in_errors,
    require_vector,
)


@dataclass(frozen=True)
class Played:
    """One step of all envs."""

    obs: npt.NDArray[Any]  # (n, *obs_shape), after the reset where an episode ended
    reward: npt.NDArray[np.float32]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    cut_obs: dict[int, npt.NDArray[Any]]  # the last observation of each episode that was cut, not ended
    games: list[Game]


class PlayedAtari:
    """Games of an :class:`AtariPool`."""

    first_action = 0  # what 0 is to the env
    obs_dtype = np.dtype(np.uint8)

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        protocol: str | Protocol,
        threads: int | None,
        seed: int,
        reward: str | None = None,
    ) -> None:
        self._pool = AtariPool(
            env_id, num_envs, protocol, threads=threads, seed=seed, autoreset="same_step", reward=reward
        )
        self.num_envs, self.num_actions = num_envs, self._pool.num_actions
        self.action_space = self._pool.single_action_space
        self.frames_per_step = self._pool.protocol.frame_skip
        self.obs_shape: tuple[int, ...] = (DEFAULT_STACK, OBS_SIDE, OBS_SIDE)
        self.rules_fingerprint: str | None = self._pool.rules_fingerprint

    def start(self, states: Sequence[bytes] | None = None) -> npt.NDArray[Any]:
        """Begin new games, or go on with saved ones; what they show."""
        if states is None:
            obs: npt.NDArray[Any] = self._pool.reset()[0]
            return obs
        self._pool.load_state(list(states))
        shown: npt.NDArray[Any] = self._pool.observations()
        return shown

    def step(self, actions: npt.NDArray[np.int64]) -> Played:
        """Let all envs take a step."""
        return self._played(*self._pool.step(actions))

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Let all envs begin a step; :meth:`receive` tells what it brought."""
        self._pool.send(actions)

    def receive(self) -> Played:
        """Wait for the end of the step."""
        return self._played(*self._pool.recv())

    def _played(self, obs: Any, reward: Any, terminated: Any, truncated: Any, info: dict[str, Any]) -> Played:
        cut = np.flatnonzero(truncated & ~terminated)
        last = {int(env): info["final_obs"][env] for env in cut}
        return Played(obs, reward.astype(np.float32), terminated, truncated, last, ended_games(info))

    def save_state(self) -> list[bytes] | None:
        """The games as they are, for :meth:`start`."""
        return self._pool.save_state()

    def state_digest(self) -> list[str] | None:
        """A hash of each game: equal of games that were played alike."""
        return self._pool.state_digest()

    def close(self) -> None:
        """End the threads."""
        self._pool.close()


class PlayedGymnasium:
    """Gymnasium's own envs, one after the other. They cannot be saved."""

    frames_per_step = 1
    obs_dtype = np.dtype(np.float32)
    rules_fingerprint: str | None = None

    def __init__(self, env_id: str, num_envs: int, seed: int) -> None:
        self._envs, self._env_id, self._seed = make_gymnasium(env_id, num_envs), env_id, seed
        observation, self.action_space = self._envs.single_observation_space, self._envs.single_action_space
        observation = require_vector(env_id, observation)
        self.num_envs = num_envs
        self.num_actions = int(self.action_space.n) if isinstance(self.action_space, spaces.Discrete) else 0
        self.first_action = int(self.action_space.start) if isinstance(self.action_space, spaces.Discrete) else 0
        self.obs_shape: tuple[int, ...] = (1, *observation.shape)
        self._returns, self._steps = np.zeros(num_envs), np.zeros(num_envs, np.int64)
        self._sent: npt.NDArray[np.int64] | None = None

    def start(self, states: Sequence[bytes] | None = None) -> npt.NDArray[Any]:
        """Begin new episodes."""
        assert states is None
        with named_in_errors(self._env_id):
            obs, _ = self._envs.reset(seed=self._seed)
        return self._shown(obs)

    def _shown(self, obs: npt.NDArray[Any], first_env: int = 0) -> npt.NDArray[Any]:
        return finite_floats(self._env_id, obs, "an observation", first_env)[:, None]

    def step(self, actions: npt.NDArray[np.int64]) -> Played:
        """Let all envs take a step."""
        with named_in_errors(self._env_id):
            obs, reward, terminated, truncated, info = self._envs.step(actions + self.first_action)
        gained = finite_floats(self._env_id, reward, "a reward")
        self._returns += reward
        self._steps += 1
        games = []
        for env in np.flatnonzero(terminated | truncated):
            games.append(Game(int(env), float(self._returns[env]), int(self._steps[env]), int(self._steps[env])))
            self._returns[env] = self._steps[env] = 0
        last = {
            int(env): self._shown(np.asarray(info["final_obs"][env])[None], int(env))[0]
            for env in np.flatnonzero(truncated & ~terminated)
        }
        return Played(self._shown(obs), gained, terminated, truncated, last, games)

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """As :class:`PlayedAtari` does; these envs take their step when it is received."""
        self._sent = actions

    def receive(self) -> Played:
        """Take the step."""
        assert self._sent is not None
        actions, self._sent = self._sent, None
        return self.step(actions)

    def save_state(self) -> list[bytes] | None:
        """None: these envs cannot be saved."""
        return None

    def state_digest(self) -> list[str] | None:
        """None: neither can they be told apart."""
        return None

    def close(self) -> None:
        """End the envs."""
        self._envs.close()


PlayedEnvs = PlayedAtari | PlayedGymnasium


def played_envs(
    env_id: str,
    num_envs: int,
    *,
    protocol: str | Protocol = DEFAULT_PROTOCOL,
    threads: int | None = None,
    seed: int = 0,
    reward: str | None = None,
) -> PlayedEnvs:
    """Envs of either kind; ``protocol``, ``threads`` and ``reward`` are for Atari games."""
    if is_atari(env_id):
        return PlayedAtari(env_id, num_envs, protocol, threads, seed, reward)
    return PlayedGymnasium(env_id, num_envs, seed)
