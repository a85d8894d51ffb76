"""One game with pictures, an Atari game or an env of Gymnasium, for somebody to watch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from fastrl.engine.atari_pool import AtariPool
from fastrl.engine.recorded_envs import make_gymnasium

Picture = npt.NDArray[np.uint8]  # (rows, columns, 3)

CONSOLE_FRAMES_PER_S = 60.0
_UNKNOWN_FRAMES_PER_S = 30.0


class ShownAtari:
    """A game in a pool of its own, with the console's own screens.

    Args:
        env_id: which.
        rules: arguments for the pool, its protocol included.
        seed: of the first game; later ones go on from it.
    """

    aspect: float | None = 4 / 3  # of the television that it was drawn for: its pixels are broad

    def __init__(self, env_id: str, rules: Mapping[str, Any], seed: int) -> None:
        self._pool = AtariPool(env_id, 1, threads=1, seed=seed, autoreset="disabled", **rules)
        self.action_space: spaces.Space[Any] = self._pool.single_action_space
        self.frames_per_step = self._pool.protocol.frame_skip
        self.frames_per_s = CONSOLE_FRAMES_PER_S

    def reset(self) -> npt.NDArray[Any]:
        """Begin the next game; its first observation."""
        first: npt.NDArray[Any] = self._pool.reset()[0][0]
        return first

    def step(self, action: Any) -> tuple[npt.NDArray[Any], float, bool]:
        """Observation, reward, and whether the game is over."""
        obs, reward, terminated, truncated, _ = self._pool.step([int(action)])
        return obs[0], float(reward[0]), bool(terminated[0] or truncated[0])

    def picture(self) -> Picture:
        """What a player would see now."""
        screen: Picture = self._pool.screens()[0]
        return screen

    def action_name(self, action: Any) -> str:
        """The engine's own name."""
        return self._pool.action_meanings[int(action)]

    def close(self) -> None:
        """End it."""
        self._pool.close()


class ShownGymnasium:
    """An env of Gymnasium that draws itself.

    Args:
        env_id: which.
        seed: of the first episode; later ones go on from it.
    """

    aspect: float | None = None
    frames_per_step = 1

    def __init__(self, env_id: str, seed: int) -> None:
        make_gymnasium(env_id, 1).close()  # refuses unknown ones in our words
        try:
            self._env: gymnasium.Env[Any, Any] = gymnasium.make(env_id, render_mode="rgb_array")
        except (ValueError, TypeError) as error:
            raise ValueError(f"env: {env_id} cannot be watched, since it does not draw itself ({error})") from None
        self.action_space = self._env.action_space
        self.frames_per_s = float(self._env.metadata.get("render_fps") or _UNKNOWN_FRAMES_PER_S)
        self._seed: int | None = seed

    def reset(self) -> npt.NDArray[Any]:
        """Begin the next episode; its first observation."""
        obs, _ = self._env.reset(seed=self._seed)
        self._seed = None
        return np.asarray(obs)

    def step(self, action: Any) -> tuple[npt.NDArray[Any], float, bool]:
        """Observation, reward, and whether the episode is over."""
        obs, reward, terminated, truncated, _ = self._env.step(action)
        return np.asarray(obs), float(reward), bool(terminated or truncated)

    def picture(self) -> Picture:
        """What it looks like now."""
        try:
            drawn = self._env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise ValueError(f"env: it cannot draw itself without a package that is not installed: {error}") from None
        except Exception as error:
            if type(error).__module__.split(".")[0] != "mujoco":
                raise
            raise ValueError(
                f"env: MuJoCo cannot draw here ({error}); without a display set MUJOCO_GL=egl or MUJOCO_GL=osmesa"
            ) from None
        if not isinstance(drawn, np.ndarray) or drawn.ndim != 3 or drawn.shape[2] != 3:
            raise ValueError(f"env: it draws {type(drawn).__name__}, expected an RGB picture (rows, columns, 3)")
        return drawn.astype(np.uint8, copy=False)

    def action_name(self, action: Any) -> str:
        """The number, or the numbers."""
        if isinstance(self.action_space, spaces.Discrete):
            return f"action {int(action)}"
        return "action " + np.array2string(np.asarray(action), precision=2)

    def close(self) -> None:
        """End it."""
        self._env.close()


ShownGame = ShownAtari | ShownGymnasium


def shown_game(env_id: str, rules: Mapping[str, Any] | None, seed: int) -> ShownGame:
    """A game to watch.

    Args:
        env_id: which.
        rules: arguments for an AtariPool; None: an env of Gymnasium.
        seed: of the first game.
    """
    return ShownGymnasium(env_id, seed) if rules is None else ShownAtari(env_id, rules, seed)
