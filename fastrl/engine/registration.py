"""The ids under which ``gymnasium.make_vec`` finds the pool: ``fastrl/Breakout-v0`` and its like."""

from __future__ import annotations

import gymnasium

from fastrl.engine.games import playable_games


def register() -> None:
    """Register ``fastrl/<Game>-v0`` for every game; registering again changes nothing.

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
