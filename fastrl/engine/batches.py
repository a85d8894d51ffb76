"""Batches of transitions, and the memory that they lie in: lent, and used again when nobody holds it any more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.engine import native
from fastrl.engine.budget import available_memory_bytes
from fastrl.engine.rules import whole_number

_MOST_FORMS = 64  # sizes of batches that are remembered
_LOOKED_AT_BYTES = 1 << 26  # with smaller ones it is not asked whether there is memory


@dataclass(slots=True, eq=False)  # frozen would take two microseconds more to make
class Batch:
    """Transitions, a row each. Unpacks in this order. Valid as long as one of its arrays is held."""

    obs: npt.NDArray[Any]  # (batch, stack, *obs_shape)
    action: npt.NDArray[Any]
    reward: npt.NDArray[np.float32]  # of n steps, discounted
    discount: npt.NDArray[np.float32]  # of next_obs: gamma^n, 0 after a true end
    next_obs: npt.NDArray[Any]  # with n_step=1 a view of the same memory as obs
    index: npt.NDArray[np.int64]  # (batch, 2): lane and step, for update_priorities
    weight: npt.NDArray[np.float32]  # importance weights, at most 1; uniform replay: all 1
    _loan: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, loan: Any) -> Batch:
        """The arrays of a loan, each of which holds it."""
        obs, action, reward, discount, next_obs, index, weight, _ = loan.arrays()
        return cls(obs, action, reward, discount, next_obs, index, weight, loan)

    def guard(self, event: Any) -> None:
        """Let the memory be used again only when ``event.query()`` says True, too.

        For a copy to a GPU that is still under way when the batch is dropped: record a ``torch.cuda.Event`` behind the
        copy and give it here.
        """
        if self._loan is None:
            raise RuntimeError("guard: this batch lies in a buffer(), which its next sample writes over at any time")
        self._loan.guard(event)

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return iter((self.obs, self.action, self.reward, self.discount, self.next_obs, self.index, self.weight))


class BatchBuffer:
    """Memory that batches of one size are written into, see :meth:`Replay.buffer`."""

    def __init__(self, loan: Any, n_step: int, lender: BatchLender) -> None:
        self.loan = loan
        self.n_step = n_step
        self._lender = lender
        self.batch = Batch.of(loan)
        self.batch._loan = None  # nothing to guard: its next sample comes when the caller wants

    def fits(self, lender: BatchLender) -> bool:
        """Whether batches of that replay look the same."""
        return lender is self._lender or lender.looks == self._lender.looks


class BatchLender:
    """Where the batches of one replay get their memory from."""

    def __init__(self, ring: Any, obs_like: npt.NDArray[Any], action_like: npt.NDArray[Any], most_steps: int) -> None:
        self._ring = ring
        self._likes = (obs_like, action_like)
        self.looks = [(like.shape, like.dtype) for like in self._likes]  # of an observation, of an action
        self._most_steps = most_steps
        self._forms: dict[tuple[int, int, bool], Any] = {}
        self._bank = native.core.BatchBank()
        self._pinned_bank: Any = None

    def form(self, batch: int, n_step: int, with_observations: bool = True) -> Any:
        """What batches of this size look like. Refuses sizes that there are not."""
        known = type(batch) is int and type(n_step) is int  # a float that is as large is none of them
        found = self._forms.get((batch, n_step, with_observations)) if known else None
        if found is None:
            batch = whole_number("batch", batch, 1, 2**20)
            n_step = whole_number("n_step", n_step, 1)
            if n_step > self._most_steps:
                raise ValueError(
                    f"n_step: {n_step} is outside [1, {self._most_steps}]; more need a larger capacity, of which each "
                    f"lane has its part"
                )
            found = native.core.BatchForm(self._ring, batch, n_step, with_observations, *self._likes)
            # The kernel promises more than there is, and ends whoever takes it at its word.
            if found.bytes > _LOOKED_AT_BYTES and found.bytes > (available := available_memory_bytes()):
                raise MemoryError(
                    f"batch: {batch:,} transitions take {found.bytes:,} bytes, but only {available:,} are available; "
                    f"ask for fewer"
                )
            if len(self._forms) >= _MOST_FORMS:
                self._forms.clear()
            self._forms[batch, n_step, with_observations] = found
        return found

    def bank(self, pinned: bool) -> Any:
        """Lends memory, and takes it back."""
        if not pinned:
            return self._bank
        if self._pinned_bank is None:
            self._pinned_bank = native.core.BatchBank(_pinned_bytes)
        return self._pinned_bank

    def lend(self, batch: int, n_step: int, with_observations: bool = True) -> Any:
        """Memory for a batch of this size."""
        form = self.form(batch, n_step, with_observations)
        try:
            return self._bank.lend(form)
        except MemoryError:
            raise MemoryError(f"batch: there is no memory for {batch:,} transitions; ask for fewer") from None


def _pinned_bytes(size: int) -> npt.NDArray[np.uint8]:
    """Page-locked memory, which torch allocates and keeps alive as long as the array."""
    import torch

    memory: npt.NDArray[np.uint8] = torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available()).numpy()
    return memory
