"""Envs whose every step is recorded in a replay: Atari games by their own threads, any other Gymnasium env from Python.

What a trainer sees is the same for both: it acts on ``stacks()``, hands actions to ``send()``, may learn meanwhile, and
``receive()`` tells how many steps were taken and which games ended. Autoreset happens within the step, so that every
step of every env is a decision of the agent.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from fastrl.engine.atari_pool import OBS_SIDE, AtariPool
from fastrl.engine.games import find_game, nearest_games
from fastrl.engine.mujoco_pool import MujocoPool
from fastrl.engine.mujoco_tasks import task_ids
from fastrl.engine.protocol import DEFAULT_PROTOCOL, DEFAULT_STACK, Protocol
from fastrl.engine.protocol import protocol as named_protocol
from fastrl.engine.replay import Replay
from fastrl.engine.rules import resolved_protocol

_EPISODE = struct.Struct("<dq")  # of an episode under way: return so far, steps


@dataclass(frozen=True)
class Game:
    """A full game that ended, in its own score."""

    env: int
    game_return: float
    frames: int
    steps: int


def ended_games(info: dict[str, Any]) -> list[Game]:
    """The full games that ended, by what an :class:`AtariPool` says of a step."""
    if "game_return" not in info:
        return []
    return [
        Game(int(env), float(info["game_return"][env]), int(info["game_frames"][env]), int(info["game_steps"][env]))
        for env in np.flatnonzero(info["_game_return"])
    ]


def is_atari(env_id: str) -> bool:
    """Whether ``env_id`` names an Atari game that the pool plays."""
    try:
        find_game(env_id)
    except ValueError:
        return False
    return True


class RecordedAtari:
    """An :class:`AtariPool` that writes its frames straight into the lanes of a replay.

    Args:
        env_id, num_envs, protocol, threads, seed: as for the pool.
        capacity, alpha, replay_seed: as for :class:`Replay`.
        protocol_changes: rules that replace the protocol's own, where they are not None.
        resume_replay: a saved replay to go on with; then :meth:`start` is to be given the games that belong to it.
    """

    kind: Literal["atari", "gymnasium"] = "atari"
    first_action = 0

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        capacity: int | Literal["auto"],
        *,
        protocol: str | Protocol = DEFAULT_PROTOCOL,
        protocol_changes: dict[str, Any] | None = None,
        threads: int | None = None,
        seed: int = 0,
        replay_seed: int = 0,
        alpha: float | None = None,
        resume_replay: Path | None = None,
    ) -> None:
        changes = protocol_changes or {}
        rules = resolved_protocol(protocol, find_game(env_id).sticky, **changes)
        self.num_envs = num_envs
        self.replay = Replay(
            capacity,
            lanes=num_envs,
            obs_shape=(OBS_SIDE, OBS_SIDE),
            stack=DEFAULT_STACK,
            seed=replay_seed,
            padding=rules.stack_padding,
            alpha=alpha,
        )
        if resume_replay is not None:
            self.replay.load(resume_replay)
        self.pool = AtariPool(
            env_id,
            num_envs,
            protocol,
            threads=threads,
            seed=seed,
            autoreset="same_step",
            sink=self.replay.sink(continue_episodes=resume_replay is not None),
            stacks=False,
            **changes,
        )
        self.num_actions = self.pool.num_actions
        self.frames_per_step = self.pool.protocol.frame_skip
        self.obs_shape: tuple[int, ...] = (OBS_SIDE, OBS_SIDE)
        self.rules_fingerprint = self.pool.rules_fingerprint

    def start(self, states: Sequence[bytes] | None = None) -> None:
        """Begin new games, or go on with saved ones."""
        if states is None:
            self.pool.reset()
        else:
            self.pool.load_state(list(states))

    def stacks(self, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """What each env's agent looks at, (num_envs, stack, *obs_shape)."""
        return self.replay.stacks(out)

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Let all envs take a step, and return at once."""
        self.pool.send(actions)

    def receive(self) -> list[Game]:
        """Wait for the step to be done, and recorded. Tells which full games ended with it."""
        return ended_games(self.pool.recv()[-1])

    def save_state(self) -> list[bytes] | None:
        """The games as they are, for :meth:`start`."""
        return self.pool.save_state()

    def state_digest(self) -> list[str] | None:
        """A hash of each game: equal of games that were played alike."""
        return self.pool.state_digest()

    def close(self) -> None:
        """End the threads."""
        self.pool.close()


class RecordedGymnasium:
    """Envs of Gymnasium with vectors as observations, recorded in a replay.

    Actions are numbers from 0 on, or, for a Box, in [-1, 1] for each dimension, whatever the Box's own bounds are.
    The MuJoCo tasks that fastrl has a pool for are stepped by that pool, and their states can be saved. Others are
    stepped one after the other and have none: a run that is resumed begins new episodes in them.

    Args:
        env_id, num_envs, threads, seed: as for the pool.
        capacity, alpha, replay_seed: as for :class:`Replay`.
        resume_replay: a saved replay to go on with.
        refusal: what the learner says of a space of actions that it cannot take: what it needs, and a remedy; None of
            one that it can.

    Raises:
        ValueError: there is no such env, or its observations or actions cannot be learned.
    """

    kind: Literal["atari", "gymnasium"] = "gymnasium"
    frames_per_step = 1
    rules_fingerprint = None

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        capacity: int | Literal["auto"],
        *,
        threads: int | None = None,
        seed: int = 0,
        replay_seed: int = 0,
        alpha: float | None = None,
        resume_replay: Path | None = None,
        refusal: Callable[[spaces.Space[Any]], str | None] = lambda actions: None,
    ) -> None:
        self.num_envs = num_envs
        self._env_id = env_id
        self._refusal = refusal
        self._envs = make_vectors(env_id, num_envs, threads)
        try:
            self._prepare(capacity, replay_seed, alpha, resume_replay)
        except BaseException:
            self._envs.close()
            raise
        self._seed = seed
        goes_on = resume_replay is not None and isinstance(self._envs, MujocoPool)
        self._writers = [self.replay.writer(lane, continue_episode=goes_on) for lane in range(num_envs)]
        self._returns = np.zeros(num_envs)
        self._steps = np.zeros(num_envs, np.int64)
        self._actions: npt.NDArray[Any] | None = None

    def _prepare(
        self, capacity: int | Literal["auto"], replay_seed: int, alpha: float | None, resume_replay: Path | None
    ) -> None:
        env_id = self._env_id
        observation, action = self._envs.single_observation_space, self._envs.single_action_space
        observation = require_vector(env_id, observation)
        refusal = self._refusal(action)
        if refusal is not None:
            raise ValueError(f"env: {env_id} has actions {action}; {refusal}")
        self.action_space = action
        self.num_actions = int(action.n) if isinstance(action, spaces.Discrete) else 0
        self.first_action = int(action.start) if isinstance(action, spaces.Discrete) else 0  # what 0 is to the env
        try:
            self._to_env = action_scaling(action)
        except ValueError as error:
            raise ValueError(f"env: {env_id} has {error}") from None
        self.obs_shape: tuple[int, ...] = observation.shape
        self.replay = Replay(
            capacity,
            lanes=self.num_envs,
            obs_shape=observation.shape,
            obs_dtype="float32",
            stack=1,
            action=spaces.Box(-1, 1, action.shape, np.float32) if isinstance(action, spaces.Box) else action,
            seed=replay_seed,
            alpha=alpha,
        )
        if resume_replay is not None:
            self.replay.load(resume_replay)

    def start(self, states: Sequence[bytes] | None = None) -> None:
        """Begin new episodes, or go on with saved ones."""
        if states is not None:
            self._envs.load_state([state[_EPISODE.size :] for state in states])
            for env, state in enumerate(states):
                self._returns[env], self._steps[env] = _EPISODE.unpack(state[: _EPISODE.size])
            return
        with named_in_errors(self._env_id):
            obs, _ = self._envs.reset(seed=self._seed)
        for writer, first in zip(self._writers, self._recordable(obs, "an observation"), strict=True):
            writer.start(first)

    def stacks(self, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """What each env's agent looks at, (num_envs, 1, *obs_shape)."""
        return self.replay.stacks(out)

    def send(self, actions: npt.NDArray[Any]) -> None:
        """Let all envs take a step, which they do when it is received."""
        self._actions = actions

    def receive(self) -> list[Game]:
        """Take the step and record it. Tells which episodes ended with it."""
        assert self._actions is not None, "receive: send() comes first"
        actions, self._actions = self._actions, None
        with named_in_errors(self._env_id):
            obs, reward, terminated, truncated, info = self._envs.step(self._to_env(actions))
        self._returns += reward
        self._steps += 1
        seen, gained = self._recordable(obs, "an observation"), self._recordable(reward, "a reward")
        games = []
        for env, writer in enumerate(self._writers):
            over = bool(terminated[env] or truncated[env])
            led_to = self._recordable(info["final_obs"][env][None], "an observation", env)[0] if over else seen[env]
            writer.append(
                actions[env],
                float(gained[env]),
                led_to,
                terminated=bool(terminated[env]),
                truncated=bool(truncated[env]),
            )
            if over:
                writer.start(seen[env])
                steps = int(self._steps[env])
                games.append(Game(env, float(self._returns[env]), steps, steps))
                self._returns[env] = self._steps[env] = 0
        return games

    def _recordable(self, given: npt.NDArray[Any], what: str, first_env: int = 0) -> npt.NDArray[np.float32]:
        return finite_floats(self._env_id, given, what, first_env)

    def save_state(self) -> list[bytes] | None:
        """The envs as they are, for :meth:`start`; None: these cannot be saved."""
        if not isinstance(self._envs, MujocoPool):
            return None
        states = self._envs.save_state()
        return [_EPISODE.pack(self._returns[env], self._steps[env]) + state for env, state in enumerate(states)]

    def state_digest(self) -> list[str] | None:
        """A hash of each env; None: these cannot be saved."""
        return [hashlib.sha256(state).hexdigest() for state in self.save_state() or []] or None

    def close(self) -> None:
        """End the envs and free the lanes."""
        for writer in self._writers:
            writer.close()
        self._envs.close()


RecordedEnvs = RecordedAtari | RecordedGymnasium


def require_vector(env_id: str, observation: spaces.Space[Any]) -> spaces.Box:
    """Raise unless the observations of an env are vectors of numbers."""
    if not isinstance(observation, spaces.Box) or len(observation.shape) != 1 or not observation.shape[0]:
        raise ValueError(
            f"env: {env_id} has observations {observation}; a vector of one or more numbers is needed, which "
            f"gymnasium.wrappers.FlattenObservation makes of most others (register the wrapped env under an id of its "
            f"own); Atari games are named as ale-py does"
        )
    return observation


def action_scaling(space: spaces.Space[Any]) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
    """From the learner's actions (from 0 on; in [-1, 1]) to those of ``space``.

    >>> scale = action_scaling(spaces.Box(np.float32([0, -2]), np.float32([1, 6])))
    >>> scale(np.array([[-1.0, 0.0], [1.0, 1.0]], np.float32)).tolist()
    [[0.0, 2.0], [1.0, 6.0]]
    """
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return lambda actions: actions + first
    if not isinstance(space, spaces.Box) or not space.is_bounded():
        raise ValueError(
            f"actions {space}; numbers from 0 on or a Box with bounds are needed (a wrapper such as "
            f"gymnasium.wrappers.TransformAction can give it bounds)"
        )
    low, high, kind = space.low.astype(np.float64), space.high.astype(np.float64), space.dtype
    whole = not np.issubdtype(kind, np.floating)

    def scale(actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # Written so that -1 and 1 give the bounds themselves. Rounding may not lead outside.
        upwards = np.add(actions, 1, dtype=np.float64) * 0.5
        found: npt.NDArray[Any] = np.minimum(np.maximum(low * (1 - upwards) + high * upwards, low), high)
        return (np.rint(found) if whole else found).astype(kind)

    return scale


def make_vectors(env_id: str, num_envs: int, threads: int | None = None) -> Any:
    """Envs with vectors as observations, which reset within the step: fastrl's own pool, or Gymnasium's vector."""
    if env_id in task_ids():
        return MujocoPool(env_id, num_envs, threads=threads, autoreset="same_step")
    return make_gymnasium(env_id, num_envs)


def finite_floats(env_id: str, given: npt.NDArray[Any], what: str, first_env: int = 0) -> npt.NDArray[np.float32]:
    """What envs gave as 32-bit floats. A number that is none would spoil the weights once it is learned from.

    Args:
        env_id: of the envs.
        given: of each env from ``first_env`` on.
        what: to be named.
        first_env: which.

    Raises:
        ValueError: one is not finite.
    """
    with np.errstate(over="ignore"):
        found: npt.NDArray[np.float32] = np.ascontiguousarray(given, np.float32)
    if not np.isfinite(found).all():
        env = int(np.flatnonzero(~np.isfinite(found).reshape(len(found), -1).all(1))[0])
        raise ValueError(
            f"step: {env_id} gave env {first_env + env} {what} of {given[env].tolist()}; only finite numbers "
            f"of 32 bits can be learned from. Have the env end the episode instead, or wrap it"
        )
    return found


@contextlib.contextmanager
def named_in_errors(env_id: str) -> Iterator[None]:
    """An error of the env's own says which env it was, below its traceback."""
    try:
        yield
    except Exception as error:
        error.add_note(f"(raised by {env_id}, an env that fastrl only steps)")
        raise


def make_gymnasium(env_id: str, num_envs: int, **changes: Any) -> Any:
    """Gymnasium's own vector of ``env_id``, which resets within the step.

    Args:
        env_id: which.
        num_envs: side by side.
        changes: arguments of the env's own.

    Raises:
        ValueError: there is no such env; the message names near ones.
    """
    try:
        return gymnasium.make_vec(
            env_id,
            num_envs=num_envs,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
            **changes,
        )
    except gymnasium.error.UnregisteredEnv as error:
        raise _unknown(env_id, error) from None
    except gymnasium.error.DependencyNotInstalled as error:
        raise ValueError(f"env: '{env_id}' needs a package that is not installed: {error}") from None


def require_known(env_id: str) -> None:
    """Raise, without making it, unless ``env_id`` names an env; a module that it names is imported by who makes it."""
    if is_atari(env_id) or ":" in env_id:
        return
    try:
        gymnasium.spec(env_id)
    except gymnasium.error.UnregisteredEnv as error:
        raise _unknown(env_id, error) from None
    except gymnasium.error.Error:
        pass  # what else may be wrong with it is told when it is made


def _unknown(env_id: str, error: gymnasium.error.Error) -> ValueError:
    hint = nearest_games(env_id) or "."
    return ValueError(f"env: '{env_id}' is neither an Atari game nor an env of Gymnasium{hint} Gymnasium says: {error}")


def evaluation_protocol(name: str | Protocol) -> dict[str, Any]:
    """Which rules a policy is measured by under this protocol: full games, true rewards, the protocol's time limit."""
    rules = named_protocol(name)
    return {"protocol": name, "life_loss": "ignored", "reward": "raw", "max_frames": rules.evaluation_max_frames}
