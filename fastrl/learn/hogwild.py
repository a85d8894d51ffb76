"""Parameters that many workers move at once without a lock (Hogwild), and the RMSProp whose statistics they share.

Who owns what: the values and the squares belong to all. A worker copies the values (its snapshot), computes a gradient
on them that is its own, and applies it with plain reads and writes. What may be lost: where two workers write the same
number at the same moment, one of the two changes; a snapshot may hold some numbers from before and some from after
another's step. The papers accept both: gradients are small, and rarely touch in the same microseconds. Numbers are
never torn, since they are aligned 32-bit words. How often steps overlapped, and how many others were applied between
snapshot and step, is counted.

On a GPU workers are streams of one process, and what they share lies on the device; the rest is the same. There steps
are counted when they are handed to the device, and as done when it has done them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrl.engine.shared_memory import SharedMemory, SharedMemoryHandle

_LINE_BYTES = 64  # of a cache: counters of different workers never share one
_COUNTERS = ("begun", "done", "lag", "overlaps")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class SharedHandle:
    """For workers in other processes."""

    memory: SharedMemoryHandle
    size: int
    workers: int
    copies: int


class SharedParameters:
    """The values, their squares' averages, and the counters of the workers.

    Args:
        size: how many numbers the network has.
        workers: that apply gradients, each with counters of its own.
        copies: further vectors that are shared, such as a target network's.
        device: where the vectors lie; those on a GPU are for this process only.
    """

    def __init__(
        self,
        size: int,
        workers: int,
        copies: int = 0,
        device: torch.device = _CPU,
        _memory: SharedMemory | None = None,
    ) -> None:
        self.size, self.workers, self.copies = size, workers, copies
        lines = _LINE_BYTES * (workers + 1)
        self._memory = _memory or SharedMemory.create(lines + 4 * size * (2 + copies))
        # Each row is written by one worker only; the last is for all.
        words = _LINE_BYTES // 8
        table: npt.NDArray[np.int64] = self._memory.array(0, (workers + 1, words), np.int64)
        self._counters, self._common = table[:workers], table[workers]
        vectors = self._memory.array(lines, (2 + copies, size), np.float32)
        self._refreshed: torch.cuda.Event | None = None
        self.values, self.squares, *self.further = torch.from_numpy(vectors).to(device).unbind()

    def handle(self) -> SharedHandle:
        """For :meth:`attach`."""
        return SharedHandle(self._memory.handle(), self.size, self.workers, self.copies)

    @classmethod
    def attach(cls, handle: SharedHandle) -> SharedParameters:
        """The parameters of another process."""
        return cls(handle.size, handle.workers, handle.copies, _memory=SharedMemory.attach(handle.memory))

    def applied(self) -> int:
        """How many gradients were applied so far, by all."""
        return int(self._counters[:, 1].sum())

    @property
    def refreshes(self) -> int:
        """How often a further vector was due to be refreshed, for algorithms that have one."""
        return int(self._common[0])

    @refreshes.setter
    def refreshes(self, value: int) -> None:
        self._common[0] = value

    def refresh_copy(self) -> None:
        """Make the first further vector what the values are."""
        self.further[0].copy_(self.values)
        if self.values.is_cuda:  # other streams know of it before the device has done it
            self._refreshed = torch.cuda.current_stream().record_event()

    def take_copy(self, into: Tensor) -> None:
        """What :meth:`refresh_copy` left."""
        if self._refreshed is not None:
            torch.cuda.current_stream().wait_event(self._refreshed)
        into.copy_(self.further[0])

    def counts(self) -> dict[str, int]:
        """Gradients applied, their lag (others applied since their snapshot) and overlaps, summed over all."""
        counted = {name: int(self._counters[:, column].sum()) for column, name in enumerate(_COUNTERS)}
        return {**counted, "refreshes": self.refreshes}

    def set_counts(self, counts: dict[str, int]) -> None:
        """Go on counting from what :meth:`counts` gave; nobody may be at work."""
        self._counters[:] = 0
        self._counters[0, : len(_COUNTERS)] = [counts[name] for name in _COUNTERS]
        self.refreshes = counts["refreshes"]

    def forget_unfinished(self, worker: int) -> None:
        """After the death of a worker: what it had begun to apply is not under way any more."""
        self._counters[worker, 0] = self._counters[worker, 1]


class SharedRMSProp:
    """One worker's way to the shared parameters: snapshot, then apply.

    RMSProp without a mean: with decay d, g <- d g + (1-d) x*x, then w -= rate * x / sqrt(g + eps).
    """

    def __init__(self, shared: SharedParameters, worker: int, decay: float, epsilon: float) -> None:
        self._shared, self._worker = shared, worker
        self._mine = shared._counters[worker]
        self._others = np.arange(shared.workers) != worker
        self._decay, self._epsilon = decay, epsilon
        self._seen = self._done_before = 0
        self._scratch = torch.empty_like(shared.values)

    def snapshot(self, into: Tensor) -> None:
        """Copy the shared values."""
        self._seen = self._shared.applied()
        into.copy_(self._shared.values)

    def apply(self, gradient: Tensor, rate: float) -> None:
        """Move the shared values by ``gradient``, which was computed on the snapshot."""
        self.begin()
        self._root_of_squares(gradient)
        self._shared.values.addcdiv_(gradient, self._scratch, value=-rate)
        self.end()

    def move(self, gradient: Tensor, rate: Tensor) -> None:
        """The numbers of :meth:`apply`, without counting, for a graph that is captured: the rate is read each time."""
        self._root_of_squares(gradient)
        self._shared.values.sub_(torch.div(gradient, self._scratch, out=self._scratch).mul_(rate))

    def _root_of_squares(self, gradient: Tensor) -> None:
        self._shared.squares.mul_(self._decay).addcmul_(gradient, gradient, value=1 - self._decay)
        torch.add(self._shared.squares, self._epsilon, out=self._scratch).sqrt_()

    def begin(self) -> None:
        """Count an apply as begun."""
        self._mine[0] += 1
        self._done_before = int(self._shared._counters[self._others, 1].sum())
        self._mine[2] += self._shared.applied() - self._seen

    def end(self) -> None:
        """Count it as done."""
        # An upper bound of lost changes: what others had not done when this began, and have begun by now. (Of a worker
        # that died what it had begun is forgotten, hence the bound below.)
        begun = int(self._shared._counters[self._others, 0].sum())
        self._mine[3] += max(0, begun - self._done_before)
        self._mine[1] += 1
