"""What Gymnasium says of its MuJoCo tasks, made ready for C++: models, settings and their defaults, starts.

Nothing of a task is stated here that Gymnasium's own environment states: one is made and asked.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from fastrl.engine import native
from fastrl.engine.games import nearest
from fastrl.engine.rules import whole_number

# The native enum (csrc/mujoco/mujoco_env.hpp).
_TASKS = {
    "HalfCheetah-v5": 0,
    "Hopper-v5": 1,
    "Walker2d-v5": 2,
    "Ant-v5": 3,
    "Swimmer-v5": 4,
    "InvertedPendulum-v5": 5,
}
# Where starts draw velocities from a normal distribution; the others draw them from a uniform one.
_NORMAL_VELOCITIES = frozenset({"HalfCheetah-v5", "Ant-v5"})

# Of Gymnasium's arguments: another model, and what is only of pictures.
_NOT_SETTINGS = frozenset({"self", "xml_file", "default_camera_config", "kwargs"})

# What C++ is told of where a task has no such setting. It is not used then.
_UNUSED: dict[str, Any] = {
    "forward_reward_weight": 0.0,
    "ctrl_cost_weight": 0.0,
    "contact_cost_weight": 0.0,
    "healthy_reward": 0.0,
    "terminate_when_unhealthy": False,
    "healthy_state_range": (0.0, 0.0),
    "healthy_z_range": (0.0, 0.0),
    "healthy_angle_range": (0.0, 0.0),
    "contact_force_range": (0.0, 0.0),
}

Doubles = npt.NDArray[np.float64]


def task_ids() -> list[str]:
    """The tasks that a pool can step."""
    return list(_TASKS)


@dataclass(frozen=True)
class MujocoTask:
    """One task under one choice of settings."""

    env_id: str
    settings: dict[str, Any]  # all of them, those not given as Gymnasium has them
    max_episode_steps: int
    prototype: Any  # Gymnasium's environment, asked for its model, spaces and start
    terms: list[tuple[str, bool]]  # what a step's info has, and whether a reset's info has it too
    rules: dict[str, Any]  # for C++

    def draw_starts(self, generator: np.random.Generator, count: int) -> tuple[Doubles, Doubles]:
        """Positions and velocities of the next ``count`` episodes, drawn as Gymnasium's environment draws them."""
        scale, model = self.settings["reset_noise_scale"], self.prototype.model
        if self.env_id in _NORMAL_VELOCITIES:
            qpos, qvel = np.empty((count, model.nq)), np.empty((count, model.nv))
            for start in range(count):
                qpos[start] = generator.uniform(low=-scale, high=scale, size=model.nq)
                qvel[start] = scale * generator.standard_normal(model.nv)
        else:  # row by row, which is the order in which the environment draws
            noise = generator.uniform(low=-scale, high=scale, size=(count, model.nq + model.nv))
            qpos, qvel = noise[:, : model.nq], noise[:, model.nq :]
        return self.prototype.init_qpos + qpos, self.prototype.init_qvel + qvel


def make_task(env_id: str, max_episode_steps: int | None, given: Mapping[str, Any]) -> MujocoTask:
    """The task ``env_id`` with ``given`` in place of Gymnasium's settings, or an error that says what is wrong."""
    if env_id not in _TASKS:
        raise ValueError(
            f"MujocoPool: '{env_id}' is unknown{nearest(str(env_id), task_ids())}; known: {', '.join(task_ids())}"
        )
    try:
        spec = gymnasium.spec(env_id)
        env_class = gymnasium.envs.registration.load_env_creator(str(spec.entry_point))
    except ImportError as error:
        raise ImportError(
            f"MujocoPool: Gymnasium's MuJoCo environments do not import ({error}): run `pip install "
            f"'gymnasium[mujoco]'`"
        ) from error
    limit = spec.max_episode_steps if max_episode_steps is None else max_episode_steps
    limit = whole_number("max_episode_steps", limit, 1, 2**31 - 1)
    settings = _checked_settings(env_id, inspect.signature(env_class.__init__).parameters, given)  # type: ignore[misc]
    prototype = gymnasium.make(env_id, **settings).unwrapped
    rules = _native_rules(env_id, prototype, settings, limit)
    return MujocoTask(env_id, settings, limit, prototype, native.core.mujoco_terms(_TASKS[env_id]), rules)


def _checked_settings(
    env_id: str, parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any]
) -> dict[str, Any]:
    defaults = {name: p.default for name, p in parameters.items() if name not in _NOT_SETTINGS}
    unknown = [name for name in given if name not in defaults]
    if unknown:
        raise TypeError(
            f"MujocoPool: '{unknown[0]}' is no setting of {env_id}{nearest(unknown[0], list(defaults))}; known: "
            f"{', '.join(defaults)}"
        )
    return {name: _checked(name, given.get(name, default), default) for name, default in defaults.items()}


def _checked(name: str, value: Any, default: Any) -> Any:
    """``value`` if it is of the kind that Gymnasium's own default is of."""
    if name == "frame_skip":
        return whole_number(name, value, 1, 10_000)
    if name == "main_body":
        if not isinstance(value, (int, np.integer, str)) or isinstance(value, bool):
            raise TypeError(f"{name}: {value!r} is neither the number nor the name of a body")
        return value
    if isinstance(default, bool):
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name}: {value!r} is not True or False")
        return bool(value)
    if isinstance(default, tuple):
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise TypeError(f"{name}: {value!r} is not a pair (low, high)")
        low, high = (_number(name, end) for end in value)
        if not low <= high:
            raise ValueError(f"{name}: {value!r} is no range; low must not be above high")
        return low, high
    number = _number(name, value)
    if not math.isfinite(number) or (name == "reset_noise_scale" and number < 0):
        raise ValueError(f"{name}: {value!r} is not a finite number{' from 0 on' if 'scale' in name else ''}")
    return number


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: {value!r} is not a number")
    return float(value)


def _native_rules(env_id: str, prototype: Any, settings: Mapping[str, Any], limit: int) -> dict[str, Any]:
    model = prototype.model
    main_body = settings.get("main_body", 0)
    try:
        body = model.body(main_body).id
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"main_body: {main_body!r} is no body of {env_id} ({error})") from None
    rules = {
        **_UNUSED,
        **{name: value for name, value in settings.items() if name in _UNUSED},
        "task": _TASKS[env_id],
        **{size: int(getattr(model, size)) for size in ("nq", "nv", "nu", "nbody")},
        "frame_skip": settings["frame_skip"],
        "max_episode_steps": limit,
        "step_s": float(prototype.dt),
        "start_z": float(prototype.init_qpos[1]),
        "skipped_positions": int(prototype.observation_structure.get("skipped_qpos", 0)),
        "contact_in_obs": bool(settings.get("include_cfrc_ext_in_observation", False)),
        "main_body": int(body),
        "fused_norm": numpy_rounds_dot_once(),
    }
    theirs = prototype.observation_space.shape
    if theirs != (native.core.mujoco_obs_size(rules),) or model.na != 0:
        raise RuntimeError(
            f"MujocoPool: {env_id} of gymnasium {gymnasium.__version__} has observations of shape {theirs}, this "
            f"fastrl makes ({native.core.mujoco_obs_size(rules)},); install a gymnasium that pyproject.toml allows"
        )
    return rules


def numpy_rounds_dot_once() -> bool:
    """Whether numpy's dot product of two pairs keeps all digits of the second product, as fused multiply-add does.

    Its BLAS decides that by the processor. ``distance_from_origin`` is a norm, which Gymnasium asks numpy for.
    """
    # The square of the second number is 2**-60 above the middle of two neighbours, once the first is added.
    pair = np.array([2.0**-26, 1.5 + 2.0**-30])
    return bool(np.dot(pair, pair) > 2.25 + 3 * 2.0**-30)
