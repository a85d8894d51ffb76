"""Batches that are drawn by another thread before the learner wants them."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.engine import native
from fastrl.engine.batches import Batch
from fastrl.engine.rules import share

_open_prefetchers: weakref.WeakSet[Prefetcher] = weakref.WeakSet()


@atexit.register
def _close_open_prefetchers() -> None:
    for prefetcher in list(_open_prefetchers):
        prefetcher.close()


class Prefetcher:
    """Draws batches on a thread of its own, see :meth:`Replay.prefetch`. A context manager.

    It does what it is asked for in the order in which it is asked, so a batch knows exactly the priorities that were
    given before it was requested, here or to the replay, and none that came later; and it sees the steps that were
    published when it was requested. Its batches are those that ``replay.sample`` would have returned at that moment.
    Calls of the replay that draw or give priorities keep to the order too: they wait for what was asked here.

    A lockstep trainer requests what it will need until its next boundary, and takes the batches in the same order:

        >>> boundary = replay.boundary()  # doctest: +SKIP
        >>> for _ in range(4):
        ...     prefetcher.request(boundary)
        >>> for _ in range(4):
        ...     batch = prefetcher.take()
        ...     prefetcher.update_priorities(batch.index, learn(batch))

    For one thread at a time.
    """

    def __init__(
        self,
        sampler: Any,
        bank: Any,
        form: Any,
        *,
        depth: int,
        n_step: int,
        gamma: float,
        padding: int,
        beta: float,
        prioritised: bool,
    ) -> None:
        self._native = native.core.Prefetcher(sampler, bank, form, n_step, gamma, padding)
        self.depth = depth
        self.beta = beta
        self._prioritised = prioritised
        self._closed = False
        _open_prefetchers.add(self)

    def request(self, boundary: Sequence[int] | None = None, beta: float | None = None) -> None:
        """Ask for one more batch. Returns at once.

        Args:
            boundary: what :meth:`Replay.boundary` returned; None: what is published now.
            beta: exponent of the importance weights, where it changes in the course of a run.

        Raises:
            RuntimeError: ``depth`` batches were asked for and not taken.
        """
        beta = self.beta if beta is None else share("request: beta", beta)
        if self._native.pending() >= self.depth:
            raise RuntimeError(
                f"request: {self.depth} batches were asked for and not taken, and depth is {self.depth}; take() one "
                f"first, or make the prefetcher deeper"
            )
        try:
            self._native.request(boundary, beta)
        except MemoryError:
            raise MemoryError("request: no memory for the batch; take() others, or draw smaller ones") from None

    def take(self, timeout_s: float | None = None) -> Batch:
        """The oldest batch that was requested and not taken. Waits until it is drawn.

        The batch is the caller's as long as one of its arrays is held; its memory is used again when all are gone.

        Raises:
            NothingToSample: there was no whole transition when it was requested.
            TimeoutError: after ``timeout_s`` seconds; the batch is still to be taken.
        """
        if timeout_s is not None and not (isinstance(timeout_s, Real) and 0 <= timeout_s < float("inf")):
            raise ValueError(f"take: timeout_s {timeout_s!r} is not a number of seconds from 0 on; None waits for ever")
        return Batch.of(self._native.take(-1.0 if timeout_s is None else float(timeout_s)))

    def update_priorities(self, index: npt.NDArray[np.int64], priority: npt.ArrayLike) -> None:
        """Like :meth:`Replay.update_priorities`, before the next batch that is requested. Returns at once."""
        self._native.update(*checked_priorities(index, priority, self._prioritised))

    @property
    def pending(self) -> int:
        """Batches that were requested and not taken."""
        return 0 if self._closed else int(self._native.pending())

    def drain(self, operation: str = "drain") -> None:
        """Wait until everything that was asked for is done. Batches stay to be taken."""
        if self._closed:
            return
        try:
            self._native.drain(operation, -1.0)
        except RuntimeError:
            if not self._closed:  # by another thread, meanwhile: nothing is left to wait for
                raise

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def close(self) -> None:
        """End the thread. Batches that were taken stay valid; those that were not are dropped; no priorities are.

        How many of these were drawn depends on timing, and with it what is drawn later: take them first where runs must
        repeat.
        """
        self._closed = True
        self._native.close()
        _open_prefetchers.discard(self)

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def checked_priorities(
    index: npt.NDArray[np.int64], priority: npt.ArrayLike, prioritised: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Both as the native part takes them."""
    if not prioritised:
        raise RuntimeError("update_priorities: this replay draws uniformly; make it with alpha=0.6, for example")
    try:
        indices, priorities = np.asarray(index), np.asarray(priority, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor on a GPU, say
        raise TypeError(
            f"update_priorities: index must be a batch's (batch, 2) int64 array, and priorities a number for each of "
            f"its rows ({error})"
        ) from None
    if indices.dtype != np.int64 or indices.ndim != 2 or indices.shape[1] != 2:
        raise ValueError(
            f"update_priorities: index must be a batch's (batch, 2) int64 array, got {indices.dtype} of shape "
            f"{indices.shape}"
        )
    if priorities.shape != (len(indices),):
        raise ValueError(f"update_priorities: {len(indices)} transitions, but priorities of shape {priorities.shape}")
    return np.ascontiguousarray(indices), np.ascontiguousarray(priorities)
