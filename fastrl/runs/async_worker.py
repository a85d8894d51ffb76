"""One worker of an asynchronous training: plays rounds, and moves what all share by their gradients.

:class:`ProcessWorker` does so on a CPU, in a process of its own or alone in the trainer's; on a GPU
:class:`fastrl.runs.device_groups.GroupWorker` does.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrl.engine.played_envs import Played, PlayedEnvs
from fastrl.engine.recorded_envs import Game
from fastrl.learn.flat import FlatNetwork, clip_norm
from fastrl.learn.hogwild import SharedParameters, SharedRMSProp
from fastrl.learn.networks import build, named_factory
from fastrl.learn.passes import Pass, pass_of
from fastrl.runs import seeds
from fastrl.runs.traps import NonFiniteLoss, Traps
from fastrl.runs.workers import as_text, from_text

_CPU = torch.device("cpu")
_LOOK_EVERY_ROUNDS, _LOOK_AT = 1000, 32  # for dead units: at so many observations


class AsyncWorker(ABC):
    """Plays rounds with its own games and applies their gradients to what all share.

    Args:
        config: the hyper-parameters.
        network: its description.
        shared: what it moves.
        index: which worker it is.
        envs: its games.
        stream: the name of its random numbers.
        device: where it learns.
    """

    sums: ClassVar[tuple[str, ...]]  # what a round tells for the log

    def __init__(
        self,
        config: Any,
        network: dict[str, Any],
        shared: SharedParameters,
        index: int,
        envs: PlayedEnvs,
        stream: str,
        device: torch.device = _CPU,
    ) -> None:
        self.config, self.envs, self.shared, self.stream = config, envs, shared, stream
        self.description, self.device = network, device
        self.local = self.empty_network()
        self.optimiser = SharedRMSProp(shared, index, config.rmsprop_decay, config.rmsprop_epsilon)
        self.generator = seeds.generator(config.seed, f"actions {stream}")
        self.obs: npt.NDArray[Any] = np.empty(0)
        self.rounds = 0
        self.traps: Traps | None = None
        self._looked_at: list[Tensor] = []

    def empty_network(self) -> FlatNetwork:
        """A network for weights that are to be copied into it."""
        return FlatNetwork(build(self.description, factory=named_factory(self.config.network)).to(self.device))

    def start(self, state: dict[str, Any] | None) -> None:
        """Begin, or go on from what :meth:`state` gave."""
        saved = state["envs"] if state else None
        self.obs = self.envs.start(None if saved is None else [from_text(text) for text in saved])
        if state:
            seeds.restore_generator(self.generator, state["generator"])
            self.rounds = int(state["rounds"])
            if self.traps and state["traps"]:
                self.traps.load(state["traps"])

    def state(self) -> dict[str, Any]:
        """Between rounds, all that it is beside the shared parameters."""
        saved = self.envs.save_state()
        return {
            "envs": None if saved is None else [as_text(one) for one in saved],
            "envs_digest": self.envs.state_digest(),
            "generator": seeds.generator_state(self.generator),
            "rounds": self.rounds,
            "traps": self.traps.state() if self.traps else None,
        }

    def watch(self, note: Callable[[str], None]) -> None:
        """Look out for the quiet ways in which training fails; one worker of a run is enough."""
        self.traps = Traps(self.local.network, note)

    def look(self, obs: Sequence[Tensor], actions: Sequence[npt.NDArray[np.int64]]) -> None:
        """Once a round was applied: show the traps what was seen and chosen."""
        if self.traps is None:
            return
        self.traps.after_update(self.rounds, 0.0)  # that the gradient is finite is seen elsewhere
        for chosen in actions:
            self.traps.saw_actions(chosen)
        if self.rounds % _LOOK_EVERY_ROUNDS == 0 or self._looked_at:
            self._looked_at += [each.clone() for each in obs]
            if sum(map(len, self._looked_at)) >= _LOOK_AT:
                batch = torch.cat(self._looked_at)
                self.traps.inspect(lambda: self.local.network(batch))
                self._looked_at = []


class ProcessWorker(AsyncWorker):
    """A worker on a CPU, with a process of its own or alone in the trainer's."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.hurried: Callable[[], bool] = lambda: False  # whether a round is to end after the step under way
        self.way = self.way_of(self.local)

    def way_of(self, flat: FlatNetwork) -> Pass:
        """Through one of its networks."""
        return pass_of(flat, self.config.precision, own=named_factory(self.config.network) is not None)

    @abstractmethod
    def round(self, steps_before: int) -> tuple[int, list[Game], list[float]]:
        """Snapshot, play, apply.

        Args:
            steps_before: of all workers.

        Returns:
            Steps taken, full games that ended, and a value for each of ``sums``.
        """

    def complete(self, played: Sequence[Played], steps: int) -> bool:
        """Whether a round is: it has so many steps, or, for 0, the first game's episode is over.

        A wished pause ends any round, whose last states are then bootstrapped from; never so where there is one worker.
        """
        if not played:
            return False
        over = len(played) == steps if steps else bool(played[-1].terminated[0] | played[-1].truncated[0])
        return over or self.hurried()

    def snapshot(self) -> None:
        """Take the shared parameters as its own."""
        self.optimiser.snapshot(self.local.values)
        self.way.weights_changed()

    def apply(self, slope: Tensor, steps_before: int) -> float:
        """Apply the gradient for ``slope``, of all that was said in the round; returns its norm, not clipped."""
        self.way.backward(slope)
        norm = float(clip_norm(self.local.gradient, self.config.max_gradient_norm))
        if not math.isfinite(norm):
            raise NonFiniteLoss(
                f"train: the gradient is {norm} after {steps_before:,} steps, and must be finite; the last checkpoint "
                f"is from before. Resume from it, or start anew with a smaller learning rate"
            )
        self.optimiser.apply(self.local.gradient, self.config.learning_rate_at(steps_before))
        self.rounds += 1
        return norm
