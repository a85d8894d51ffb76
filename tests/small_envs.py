"""Envs of Gymnasium whose every number is known, for what records, trains and plays. Importing this registers them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LOW, HIGH = np.float32([-0.1, 2.0, -7.0]), np.float32([0.7, 2.5, -3.0])


class Counting(gymnasium.Env[np.ndarray, np.ndarray]):
    """Observations count steps; odd episodes end truly after 5 steps, even ones are cut after 7.

    Args:
        spoilt_at: the step of an episode at which something is no number.
        what: "reward", "observation", "overflow", or "error": that it raises.
        actions: the space of actions.
    """

    def __init__(self, spoilt_at: int = -1, what: str = "", actions: spaces.Space[Any] | None = None) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = actions or spaces.Box(LOW, HIGH)
        self._spoilt_at, self._what = spoilt_at, what
        self._episode = 0
        self.taken: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._episode += 1
        self._step = 0
        self.origin = float(self.np_random.integers(1_000_000))
        return np.array([self._episode, 0.0]), {"origin": self.origin}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        self.taken.append(np.array(action))
        self._step += 1
        obs, reward = np.array([self._episode, float(self._step)]), float(self._step)
        if self._step == self._spoilt_at:
            if self._what == "error":
                raise RuntimeError("out of order")
            if self._what == "reward":
                reward = float("nan")
            else:
                obs[1] = {"observation": np.nan, "overflow": 1e300}[self._what]
        odd = self._episode % 2 == 1
        return obs, reward, odd and self._step == 5, not odd and self._step == 7, {}


class Unbounded(Counting):
    """Nobody can scale actions without bounds."""

    def __init__(self) -> None:
        super().__init__(actions=spaces.Box(-np.inf, np.inf, (1,), np.float32))


class Matrix(Counting):
    """Actions that are no vector."""

    def __init__(self) -> None:
        super().__init__(actions=spaces.Box(-2, 3, (2, 2), np.float32))


class Motionless(Counting):
    """Actions that are no number at all."""

    def __init__(self) -> None:
        super().__init__(actions=spaces.Box(-1, 1, (0,), np.float32))


class Switches(Counting):
    """Several choices at once."""

    def __init__(self) -> None:
        super().__init__(actions=spaces.MultiDiscrete([2, 3]))


class Shown(Counting):
    """Observations of any space, which nobody ever sees."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        self.observation_space = space  # type: ignore[assignment]


# Observations that are no vector of numbers.
NO_VECTORS: dict[str, spaces.Space[Any]] = {
    "Pixels": spaces.Box(0, 255, (8, 8, 3), np.uint8),
    "Table": spaces.Box(-1, 1, (3, 4), np.float32),
    "Named": spaces.Dict(speed=spaces.Box(-1, 1, (3,), np.float32)),
    "Room": spaces.Discrete(5),
    "Dark": spaces.Box(-1, 1, (0,), np.float32),
}


class Uneven(gymnasium.Env[Any, Any]):
    """Games of 1 or 20 steps, by chance; the return is the length. Takes actions 1 and 2. Draws its step number."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(0, 100, (3,), np.float32)
        self.action_space = spaces.Discrete(2, start=1)
        self.render_mode = render_mode

    def _obs(self) -> Any:
        return np.full(3, self._left, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._step, self._left = 0, int(self.np_random.choice([1, 20]))
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action in (1, 2), f"action {action} is none of this env's"
        self._step, self._left = self._step + 1, self._left - 1
        return self._obs(), 1.0, self._left == 0, False, {}

    def render(self) -> Any:
        picture = np.zeros((10, 20, 3), np.uint8)
        picture[:, : self._step] = (200, 10 * self._step, 0)
        return picture


UNEVEN = "test/Uneven-v0"
for _name in ("Counting", "Unbounded", "Matrix", "Motionless", "Switches"):
    # The checker would look at every number before us, and warn.
    gymnasium.register(f"test/{_name}-v0", globals()[_name], disable_env_checker=True)
for _name, _space in NO_VECTORS.items():
    gymnasium.register(f"test/{_name}-v0", Shown, kwargs={"space": _space}, disable_env_checker=True)
for _what in ("reward", "observation", "overflow", "error"):
    for _kind, _actions in {"": None, "Choice": spaces.Discrete(2)}.items():
        gymnasium.register(
            f"test/Spoilt{_kind}-{_what}-v0",
            Counting,
            kwargs={"spoilt_at": 3, "what": _what, "actions": _actions},
            disable_env_checker=True,
        )
gymnasium.register(UNEVEN, Uneven)
