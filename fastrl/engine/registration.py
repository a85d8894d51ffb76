"""The ids under which ``gymnasium.make_vec`` finds the pools: ``fastrl/Breakout-v0``, ``fastrl/Hopper-v5``, ..."""

from __future__ import annotations

import gymnasium

from fastrl.engine.games import playable_games
from fastrl.engine.mujoco_tasks import task_ids


def register() -> None:
    """Register ``fastrl/<Game>-v0`` for every game and ``fastrl/<Task>-v5``; registering again changes nothing.

    >>> import gymnasium, fastrl
    >>> envs = gymnasium.make_vec("fastrl/Breakout-v0", num_envs=2, protocol="nature")
    """
    for game in playable_games():
        camel = "".join(part.title() for part in game.split("_"))
        if f"fastrl/{camel}-v0" not in gymnasium.registry:
            gymnasium.register(
                id=f"fastrl/{camel}-v0",
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
