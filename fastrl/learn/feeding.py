"""How batches get from a replay to where a learner learns: on a CPU as they are, to a GPU by copies or by a mirror.

All three draw the same transitions in the same order. A trainer asks, at a boundary, for as many as it will take before
its next one, and takes them one by one: each is drawn, then transferred, so that both can be timed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrl.engine.batches import Batch
from fastrl.engine.mirror import Drawn, mirror_bytes, replay_device
from fastrl.engine.replay import Replay

_PARTS = ("action", "reward", "discount", "weight")


@dataclass(slots=True)
class Fed:
    """A batch on the learner's device. On a GPU its tensors are the same every time, with other contents."""

    tensors: dict[str, Tensor]  # obs, next_obs, action, reward, discount, weight
    index: npt.NDArray[np.int64]  # for update_priorities


class HostFeeder:
    """On a CPU: batches are where they were drawn."""

    def __init__(self, replay: Replay, batch: int, n_step: int, gamma: float) -> None:
        self._replay, self._of = replay, (batch, n_step, gamma)
        self._boundary: Sequence[int] | None = None
        self._beta = 0.0

    def ask(self, boundary: Sequence[int], count: int, beta: float) -> None:
        """For ``count`` batches up to ``boundary``."""
        self._boundary, self._beta = boundary, beta

    def draw(self) -> Batch:
        """The next one, for :meth:`transfer`."""
        return self._replay.sample(*self._of, boundary=self._boundary, beta=self._beta)

    def transfer(self, drawn: Any) -> Fed:
        """What :meth:`draw` gave as tensors, in the memory that it was drawn into."""
        tensors = {name: torch.from_numpy(getattr(drawn, name)) for name in ("obs", "next_obs", *_PARTS)}
        return Fed(tensors, drawn.index)

    def update_priorities(self, index: npt.NDArray[np.int64], priority: npt.NDArray[Any]) -> None:
        """Before the next batch is drawn."""
        self._replay.update_priorities(index, priority)

    def close(self) -> None:
        """Nothing is held."""


class CopyFeeder:
    """To a GPU: a thread draws into page-locked memory, from which each batch is copied while the GPU works.

    Uniform batches are drawn ahead, all that were asked for. Prioritised ones are drawn one by one, so that each knows
    the priorities that the one before it led to.
    """

    def __init__(self, replay: Replay, batch: int, n_step: int, gamma: float, device: torch.device) -> None:
        self._prefetcher = replay.prefetch(batch, depth=1024, n_step=n_step, gamma=gamma, pin_memory=True)
        self._ahead = replay.alpha is None
        self._device = device
        self._tensors: dict[str, Tensor] = {}
        self._owed: deque[tuple[Sequence[int], float]] = deque()

    def ask(self, boundary: Sequence[int], count: int, beta: float) -> None:
        """For ``count`` batches up to ``boundary``."""
        for _ in range(count):
            if self._ahead:
                self._prefetcher.request(boundary, beta)
            else:
                self._owed.append((boundary, beta))

    def draw(self) -> Batch:
        """The next one, for :meth:`transfer`; waits for the thread."""
        if not self._ahead:
            self._prefetcher.request(*self._owed.popleft())
        return self._prefetcher.take()

    def transfer(self, drawn: Any) -> Fed:
        """What :meth:`draw` gave on the device; the copy may still be under way, in the order of the current stream."""
        for name in ("obs", "next_obs", *_PARTS):
            bring(self._tensors, name, torch.from_numpy(getattr(drawn, name)), self._device)
        if self._device.type == "cuda":
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
            drawn.guard(copied)  # its memory is drawn into again only when the copy is over
        return Fed(self._tensors, drawn.index)

    def update_priorities(self, index: npt.NDArray[np.int64], priority: npt.NDArray[Any]) -> None:
        """Before the next batch is drawn."""
        self._prefetcher.update_priorities(index, priority)

    def close(self) -> None:
        """End the thread."""
        self._prefetcher.close()


class MirrorFeeder:
    """On a GPU that has all observations: only places cross the bus."""

    def __init__(self, replay: Replay, batch: int, n_step: int, gamma: float, device: torch.device) -> None:
        self._replay, self._of = replay, (batch, n_step, gamma)
        self._mirror = replay.mirror(device)
        self._gatherer = self._mirror.gatherer(batch, n_step)
        self._device = device
        self._tensors = {"obs": self._gatherer.obs, "next_obs": self._gatherer.next_obs}
        self._beta = 0.0

    def ask(self, boundary: Sequence[int], count: int, beta: float) -> None:
        """For ``count`` batches up to ``boundary``."""
        self._mirror.upload(boundary)
        self._beta = beta

    def draw(self) -> Drawn:
        """The next one, for :meth:`transfer`: where its observations lie, and all its numbers."""
        return self._mirror.draw(*self._of, beta=self._beta)

    def transfer(self, drawn: Any) -> Fed:
        """What :meth:`draw` gave, gathered on the device in the order of the current stream."""
        self._gatherer.load(drawn)
        self._gatherer.gather()
        for name in _PARTS:
            bring(self._tensors, name, torch.from_numpy(getattr(drawn, name)), self._device)
        return Fed(self._tensors, drawn.index)

    def update_priorities(self, index: npt.NDArray[np.int64], priority: npt.NDArray[Any]) -> None:
        """Before the next batch is drawn."""
        self._replay.update_priorities(index, priority)

    def close(self) -> None:
        """The mirror goes with this."""


def bring(tensors: dict[str, Tensor], name: str, fresh: Tensor, device: torch.device) -> None:
    """Into the tensor of that name on the device, always the same one."""
    if name not in tensors:
        tensors[name] = torch.empty(fresh.shape, dtype=fresh.dtype, device=device)
    tensors[name].copy_(fresh, non_blocking=True)


Feeder = HostFeeder | CopyFeeder | MirrorFeeder


def make_feeder(
    replay: Replay,
    batch: int,
    n_step: int,
    gamma: float,
    device: torch.device,
    wanted: Literal["auto", "cpu", "cuda"] = "auto",
) -> Feeder:
    """The way that fits.

    Args:
        replay: drawn from.
        batch: transitions of a batch.
        n_step: steps of a return.
        gamma: discount of a step.
        device: where the learner learns.
        wanted: where observations are to lie for drawing: "cpu", "cuda" (a mirror), or "auto": a mirror if it fits
            into half of a GPU's free memory.
    """
    if device.type == "cpu":
        if wanted == "cuda":
            raise ValueError(
                "replay_device: 'cuda' is for learning on a GPU; this run learns on the CPU, so leave it out"
            )
        return HostFeeder(replay, batch, n_step, gamma)
    if replay_device(wanted, mirror_bytes(replay)) == "cuda":
        return MirrorFeeder(replay, batch, n_step, gamma, device)
    return CopyFeeder(replay, batch, n_step, gamma, device)
