"""Rounds of one worker of A3C or asynchronous Q without the time that its games take: how long it acts, and learns."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np

from fastrl.engine.played_envs import Played, PlayedEnvs
from fastrl.runs.async_worker import ProcessWorker
from fastrl.runs.asynchronous import Recipe
from fastrl.runs.stages import StageClock

_STEPS, _OBSERVATIONS = 64, 512  # that are kept at the most: of real games, so that what is learned from varies
_EPISODE_STEPS = 200  # of rounds that are whole episodes, where none of the kept steps ends one


class StillEnvs:
    """What games brought, again and again, at once.

    Attributes:
        asked: for how many steps.
        answered_at: the time of the last one.
    """

    def __init__(self, envs: PlayedEnvs) -> None:
        self.num_envs, self.num_actions, self.frames_per_step = envs.num_envs, envs.num_actions, envs.frames_per_step
        self.obs_shape, self.obs_dtype = envs.obs_shape, envs.obs_dtype
        self._first = envs.start(None)
        rng, count = np.random.default_rng(0), max(2, min(_STEPS, _OBSERVATIONS // envs.num_envs))
        kept = [envs.step(rng.integers(envs.num_actions, size=envs.num_envs)) for _ in range(count)]
        self._brought = itertools.cycle(kept)
        self.asked, self.answered_at = 0, 0.0

    def start(self, states: object = None) -> Any:
        """What the games showed at first."""
        return self._first

    def step(self, actions: object) -> Played:
        """What they brought next."""
        self.asked += 1
        brought = next(self._brought)
        self.answered_at = time.perf_counter()
        return brought

    def send(self, actions: object) -> None:
        """Nothing has to be done for :meth:`receive`."""

    def receive(self) -> Played:
        """As :meth:`step`."""
        return self.step(None)


class WorkerRounds:
    """Rounds of the first worker of a run, by a process that has no other.

    Attributes:
        acting_s: for a step of one game, in the last round: taking the weights, the network, the choice.
        learning_s: the same of what follows the round's last step: targets, the way back, the shared step.
    """

    def __init__(self, recipe: Recipe, config: Any, envs: PlayedEnvs) -> None:
        self.envs = StillEnvs(envs)
        still: Any = self.envs  # it is all of them that a round needs
        self.worker = recipe.first_worker(config, still)
        self.worker.start(None)
        if isinstance(self.worker, ProcessWorker) and not config.steps_per_round:
            self.worker.hurried = lambda: self.envs.asked >= _EPISODE_STEPS
        self._clock = StageClock()
        self.acting_s = self.learning_s = 0.0

    def play(self) -> None:
        """One round."""
        self.envs.asked, worker = 0, self.worker
        began = time.perf_counter()
        if isinstance(worker, ProcessWorker):
            steps, _, _ = worker.round(0)
            acted = self.envs.answered_at
        else:
            steps, acted = 0, began
            while not steps:
                steps, _ = worker.turn(self._clock, 0, begin=not worker.under_way)
                worker.wait()
                acted = acted if steps else time.perf_counter()
        self.acting_s, self.learning_s = (acted - began) / steps, (time.perf_counter() - acted) / steps
