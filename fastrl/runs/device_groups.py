"""A worker on a GPU: a group of games whose rounds are played and learned from on the device.

The trainer goes from group to group in one thread: it takes what a group's games brought, hands the network's answer to
them as their next step, and turns to the next group while they play. Each group has a stream, so that one learns while
another acts, and graphs that were captured once. On a CPU, where tests run it, the same is done without either.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrl.engine.recorded_envs import Game
from fastrl.learn.graphs import Captured
from fastrl.runs.async_worker import AsyncWorker
from fastrl.runs.stages import StageClock
from fastrl.runs.traps import NonFiniteLoss


class Round:
    """A round's numbers on the device, always at the same places, and the memory of the host that they come from.

    Attributes:
        obs: (steps + 1, envs, ...), the last one what is seen after the round.
        actions: (steps + 1, envs), the last ones those that follow the round, where they are known.
        reward: (steps, envs).
        terminated: (steps, envs), 1 where an episode ended with the step.
        cut: (steps, envs), 1 where one was cut.
        cut_value: (steps, envs), of the state in which it was cut.
    """

    _NUMBERS = ("reward", "terminated", "cut", "cut_value")

    def __init__(self, steps: int, obs: npt.NDArray[Any], device: torch.device) -> None:
        envs, locked = len(obs), device.type == "cuda"
        seen = torch.from_numpy(obs)
        self.obs = torch.zeros((steps + 1, *seen.shape), dtype=seen.dtype, device=device)
        self.actions = torch.zeros((steps + 1, envs), dtype=torch.int64, device=device)
        self._numbers = torch.zeros((len(self._NUMBERS), steps, envs), device=device)
        self.reward, self.terminated, self.cut, self.cut_value = self._numbers
        self._obs_here = torch.zeros(seen.shape, dtype=seen.dtype, pin_memory=locked)
        self._actions_here = torch.zeros((steps + 1, envs), dtype=torch.int64, pin_memory=locked)
        self._numbers_here = torch.zeros(self._numbers.shape, pin_memory=locked)
        self.here = dict(zip(self._NUMBERS, self._numbers_here.numpy(), strict=True))
        self.actions_here = self._actions_here.numpy()

    def show(self, at: int, obs: npt.NDArray[Any]) -> None:
        """What is seen before step ``at``. What was shown before must have arrived."""
        self._obs_here.copy_(torch.from_numpy(obs))
        self.obs[at].copy_(self._obs_here, non_blocking=True)

    def bring(self) -> None:
        """All but the observations, to the device."""
        self._numbers.copy_(self._numbers_here, non_blocking=True)
        self.actions.copy_(self._actions_here, non_blocking=True)


class GroupWorker(AsyncWorker):
    """Plays rounds of one length; :meth:`turn` does what can be done without waiting for another group."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.length = self.config.steps_per_round // self.config.games_per_worker
        self.at = -1  # steps of the round under way that are over; -1: there is none
        self._stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._rate = torch.zeros((), device=self.device)
        self._sums = torch.zeros(1 + len(self.sums), dtype=torch.float64, device=self.device)
        self._lost = torch.zeros((), dtype=torch.bool, device=self.device)  # whether a gradient was not finite
        self._learning = Captured(self._learn, self.device)
        self._learned: torch.cuda.Event | None = None  # of an apply that the device may still be at
        self._games: list[Game] = []
        self._preferred: list[npt.NDArray[np.int64]] = []

    def autocast(self) -> Any:
        """The precision of the networks' products."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    # ---- what algorithms say

    @abstractmethod
    def answer(self, obs: Tensor) -> Tensor:
        """What actions are chosen by, (envs, actions)."""

    @abstractmethod
    def choose(self, said: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Actions by what :meth:`answer` gave, on the host; and those that the policy prefers, for the traps."""

    @abstractmethod
    def value(self, obs: Tensor) -> Tensor:
        """Of states in which an episode was cut."""

    @abstractmethod
    def losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the round on the device, and all of ``sums`` but the gradient's norm."""

    def before_round(self, steps_before: int) -> None:
        """Whatever else has to be done when a round begins."""

    def after_round(self) -> None:
        """Whatever has to be done before the round is learned from."""

    # ---- the round

    @property
    def under_way(self) -> bool:
        """Whether a round is."""
        return self.at >= 0

    @property
    def steps_of_a_round(self) -> int:
        """Of all its games."""
        return int(self.length * self.envs.num_envs)

    def start(self, state: dict[str, Any] | None) -> None:
        """Begin, or go on from what :meth:`state` gave."""
        super().start(state)
        if self._stream is not None:
            torch.cuda.synchronize(self.device)  # what was made so far was made on another stream
        with self._on_stream():
            self.round = Round(self.length, self.obs, self.device)
            self._said = torch.zeros((len(self.obs), self.envs.num_actions), device=self.device)
            self._said_here = torch.zeros(self._said.shape, pin_memory=self._stream is not None)
            self.round.show(self.length, self.obs)
            self._looks = [Captured(partial(self._look_at, at), self.device) for at in range(self.length + 1)]
            self.wait()

    def turn(self, clock: StageClock, steps_before: int, begin: bool = True) -> tuple[int, list[Game]]:
        """Take what the games brought, and let them go on.

        Args:
            clock: of the stages.
            steps_before: of all groups.
            begin: a round, if there is none, or if this ends one.

        Returns:
            Steps and games of a round that is over; 0 of one that is not.
        """
        steps, games = 0, list[Game]()
        with self._on_stream():
            if self.under_way:
                with clock("wait for games"):
                    played = self.envs.receive()
                with clock("learn" if self.at + 1 == self.length else "act"):
                    self._take(played)
                    if self.at == self.length:
                        steps, games = self._end()
            if self.under_way or begin:
                with clock("act"):
                    if not self.under_way:
                        self._begin(steps_before)
                    actions = self.actions_at(self.at)
                    self.round.actions_here[self.at] = actions
                    self.envs.send(actions)
        return steps, games

    def summed(self) -> npt.NDArray[np.float64]:
        """How many rounds were learned from, and the sums over them; waits for the device.

        Raises:
            NonFiniteLoss: a gradient was not finite. It was not applied.
        """
        with self._on_stream():
            self.wait()
            self.count_done()
            if bool(self._lost):
                raise NonFiniteLoss(
                    "train: a gradient was not finite; the last checkpoint is from before. Resume from it, or start "
                    "anew with a smaller learning rate"
                )
            found: npt.NDArray[np.float64] = self._sums.cpu().numpy().copy()
        return found

    def count_done(self) -> None:
        """Of the last apply, if the device is through with it."""
        if self._learned is not None and self._learned.query():  # type: ignore[no-untyped-call]
            self._learned = None
            self.optimiser.end()

    def actions_at(self, at: int) -> npt.NDArray[np.int64]:
        """The network's choice by what is seen before step ``at``; waits for the device."""
        self._looks[at]()
        self._said_here.copy_(self._said, non_blocking=True)
        self.wait()
        actions, preferred = self.choose(self._said_here)
        self._preferred.append(preferred)
        return actions

    def _on_stream(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def wait(self) -> None:
        """For the device to have done all that it was told by this group."""
        if self._stream is not None:
            self._stream.synchronize()

    def _look_at(self, at: int) -> None:
        with torch.no_grad():
            self._said.copy_(self.answer(self.round.obs[at]))

    def _begin(self, steps_before: int) -> None:
        self.count_done()
        self.optimiser.snapshot(self.local.values)
        self._rate.fill_(self.config.learning_rate_at(steps_before))
        self.before_round(steps_before)
        self.round.obs[0].copy_(self.round.obs[self.length])
        self.at, self._preferred = 0, []

    def _take(self, played: Any) -> None:
        at, here = self.at, self.round.here
        here["reward"][at], here["terminated"][at] = played.reward, played.terminated
        here["cut"][at] = here["cut_value"][at] = 0
        for env, obs in played.cut_obs.items():
            here["cut"][at, env] = 1
            with torch.no_grad():
                here["cut_value"][at, env] = float(self.value(torch.from_numpy(obs[None]).to(self.device)))
        self._games += played.games
        self.obs = played.obs
        self.at = at + 1
        self.round.show(self.at, played.obs)

    def _end(self) -> tuple[int, list[Game]]:
        self.after_round()
        self.round.bring()
        self.count_done()
        self.optimiser.begin()
        self._learning()
        if self._stream is None:
            self.optimiser.end()
        else:
            self._learned = self._stream.record_event()
        self.rounds += 1
        self.look(list(self.round.obs[: self.length]), self._preferred)
        games, self._games = self._games, []
        self.at = -1
        return self.steps_of_a_round, games

    def _learn(self) -> None:
        gradient, most = self.local.gradient, self.config.max_gradient_norm
        gradient.zero_()
        loss, found = self.losses()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = gradient.norm()
        finite = norm.isfinite()
        self._lost.logical_or_(~finite)
        shorter = (most / norm).clamp(max=1.0) if most > 0 else torch.ones_like(norm)
        torch.where(finite, gradient * shorter, torch.zeros_like(gradient), out=gradient)
        self.optimiser.move(gradient, self._rate)
        found["grad_norm"] = norm
        self._sums += torch.stack([torch.ones_like(norm), *(found[name].detach() for name in self.sums)])
