"""What learners without a replay are shown: of real games, where a life ends an episode and the game goes on."""

from __future__ import annotations

import numpy as np
import pytest

import fastrl
from fastrl.engine.played_envs import played_envs


@pytest.mark.parametrize("protocol", ["nature", "sb3"])
def test_a_lost_life_ends_the_episode_and_not_the_game(protocol: str) -> None:
    """Beside a pool that plays the same and tells of lives."""
    envs = played_envs("BreakoutNoFrameskip-v4", 4, protocol=protocol, threads=1, seed=7)
    told = fastrl.AtariPool("BreakoutNoFrameskip-v4", 4, protocol, threads=1, seed=7, autoreset="same_step")
    assert np.array_equal(envs.start(), told.reset()[0])
    lives = np.full(4, 5)
    generator = np.random.default_rng(0)
    lost = ended = 0
    for _ in range(600):
        actions = generator.integers(4, size=4)
        played = envs.step(actions)
        info = told.step(actions)[-1]
        over = {game.env for game in played.games}
        for env in range(4):
            dropped = bool(info["lives"][env] < lives[env])
            assert played.terminated[env] == (dropped or env in over)
        lost += int(played.terminated.sum()) - len(over)
        ended += len(over)
        lives = info["lives"].copy()
    envs.close()
    told.close()

    assert ended > 3
    assert lost >= 3 * ended  # of five lives the last one ends the game
