"""The ids under which ``gymnasium.make_vec`` finds the pools: ``fastrl/Breakout-v0``, ``fastrl/Hopper-v5``, ..."""

from __future__ import annotations

from typing import NoReturn

import gymnasium

from fastrl.engine.games import playable_games
from fastrl.engine.mujoco_tasks import task_ids


def single_env(**arguments: object) -> NoReturn:
    """What ``gymnasium.make`` finds, which a pool is not made by: says how it is."""
    camel = _camel(str(arguments["env_id"]))
    raise gymnasium.error.Error(
        f"make: fastrl/{camel}-v0 is a pool of envs, not a single one; call "
        f"gymnasium.make_vec('fastrl/{camel}-v0', num_envs=1) without vectorization_mode, or "
        f"fastrl.AtariPool('{arguments['env_id']}')"
    )


def _camel(game: str) -> str:
    return "".join(part.title() for part in game.split("_"))


def register() -> None:
    """Register ``fastrl/<Game>-v0`` for every game and ``fastrl/<Task>-v5``; registering again changes nothing.

    >>> import gymnasium, fastrl
    >>> envs = gymnasium.make_vec("fastrl/Breakout-v0", num_envs=2, protocol="nature")
    """
    for game in playable_games():
        if f"fastrl/{_camel(game)}-v0" not in gymnasium.registry:
            gymnasium.register(
                id=f"fastrl/{_camel(game)}-v0",
                entry_point="fastrl.engine.registration:single_env",
                vector_entry_point="fastrl.engine.atari_pool:AtariPool",
                kwargs={"env_id": game},
            )
    for task in task_ids():
        if f"fastrl/{task}" not in gymnasium.registry:
            gymnasium.register(
                id=f"fastrl/{task}",
                vector_entry_point="fastrl.engine.mujoco_pool:MujocoPool",
                kwargs={"env_id": task},
            )
