"""Replays for tests: small ones, and one that is written together with its oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
from replay_oracle import GUARD_STEPS, Expected, OracleLane
from replay_processes import observation

import fastrl

GAMMA = 0.9


def small_replay(**changes: Any) -> fastrl.Replay:
    arguments: dict[str, Any] = {
        "capacity": 48,
        "lanes": 2,
        "obs_shape": (3,),
        "obs_dtype": "float32",
        "stack": 4,
        "_least_spare_steps": GUARD_STEPS,
    }
    return fastrl.Replay(**{**arguments, **changes})


def require_row(batch: fastrl.Batch, row: int, expected: Expected) -> None:
    np.testing.assert_array_equal(batch.obs[row], expected.obs)
    np.testing.assert_array_equal(batch.next_obs[row], expected.next_obs)
    np.testing.assert_array_equal(batch.action[row], expected.action)
    assert batch.reward[row] == np.float32(expected.reward)
    assert batch.discount[row] == np.float32(expected.discount)


class Written:
    """A replay and its oracle, written alike."""

    def __init__(self, **changes: Any) -> None:
        self.replay = small_replay(**changes)
        self.slots = self.replay.capacity // self.replay.lanes
        self.lanes = [OracleLane() for _ in range(self.replay.lanes)]
        self.writers = [self.replay.writer(lane) for lane in range(self.replay.lanes)]

    def start(self, lane: int) -> None:
        obs = observation(lane, len(self.lanes[lane].slots))
        self.writers[lane].start(obs)
        self.lanes[lane].start(obs)

    def append(self, lane: int, terminated: bool = False, truncated: bool = False) -> None:
        step = len(self.lanes[lane].slots)
        given = (step % 5, step / 7, observation(lane, step), terminated, truncated)
        self.writers[lane].append(*given)
        self.lanes[lane].append(*given)

    def take_over(self, lane: int) -> None:
        self.writers[lane].close()
        self.lanes[lane].break_off()
        self.writers[lane] = self.replay.writer(lane)

    def play(self, lane: int, steps: int, seed: int = 0) -> None:
        """Steps with random ends."""
        rng = np.random.default_rng(seed)
        for _ in range(steps):
            if not self.lanes[lane].open:
                self.start(lane)
            else:
                self.append(lane, bool(rng.random() < 0.1), bool(rng.random() < 0.1))

    def eligible(self, n_step: int = 1, ends: list[int] | None = None) -> dict[tuple[int, int], Expected]:
        found = {}
        for number, lane in enumerate(self.lanes):
            end = len(lane.slots) if ends is None else ends[number]
            rows = lane.eligible(end, self.slots, self.replay.stack, n_step, GAMMA, self.replay.padding)
            found.update({(number, step): expected for step, expected in rows.items()})
        return found
