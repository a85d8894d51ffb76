"""A replay's observations in the memory of a GPU, so that a batch needs no frame to cross the bus.

Each observation is uploaded once; a batch is gathered on the device from the places that the replay draws, a few bytes
a row. The ring stays the authority: what is drawn, in which order and with which rewards, is its doing, and what is
gathered is to the bit what ``replay.sample`` would have returned. Tests use a CPU tensor in the device's role.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from fastrl.engine.replay import Replay

_STAGED_BYTES = 16_000_000  # about what is uploaded at once
_STAGES = 2  # one is filled while the other is sent
_SHARE_OF_FREE_MEMORY = 0.5  # of a device, that "auto" takes at most


def mirror_bytes(replay: Replay) -> int:
    """Memory of the device that a mirror of this replay takes, beside some buffers."""
    return mirror_bytes_of(replay.capacity, replay.obs_bytes)


def mirror_bytes_of(capacity: int, obs_bytes: int) -> int:
    """The same of a replay that is not made yet."""
    return (capacity + 1) * obs_bytes


def stages_bytes_of(capacity: int, obs_bytes: int) -> list[int]:
    """Memory of the host, piece by piece, that such a mirror uploads from."""
    rows = _staged_rows(capacity, obs_bytes)
    return _STAGES * [rows * obs_bytes, rows * 8]


def _staged_rows(capacity: int, obs_bytes: int) -> int:
    return max(1, min(capacity + 1, _STAGED_BYTES // obs_bytes))


def replay_device(
    wanted: Literal["auto", "cpu", "cuda"], needed_bytes: int, free_bytes: int | None = None
) -> Literal["cpu", "cuda"]:
    """Where a run keeps its observations: "cuda" means a mirror, "cpu" none.

    Args:
        wanted: "auto": a mirror if it fits into half of the device's free memory.
        needed_bytes: see :func:`mirror_bytes`.
        free_bytes: of the device; None: what the current CUDA device has, 0 without one.

    Raises:
        MemoryError: "cuda" was wanted, and it does not fit.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise ValueError(f"replay device: {wanted!r} is not one of 'auto', 'cpu', 'cuda'")
    if wanted == "cpu":
        return "cpu"
    if free_bytes is None:
        import torch

        free_bytes = int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else 0
    if wanted == "cuda" and needed_bytes > free_bytes:
        raise MemoryError(
            f"replay device: a mirror needs {needed_bytes / 1e9:.2f} GB, the device has {free_bytes / 1e9:.2f} GB "
            f"free; use 'cpu', or a smaller capacity"
        )
    return "cuda" if wanted == "cuda" or needed_bytes <= _SHARE_OF_FREE_MEMORY * free_bytes else "cpu"


@dataclass(slots=True, eq=False)
class Drawn:
    """Transitions without their observations, see :meth:`Mirror.draw`. The fields are those of a batch."""

    action: npt.NDArray[Any]
    reward: npt.NDArray[np.float32]
    discount: npt.NDArray[np.float32]
    index: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    place: npt.NDArray[np.int64]  # (batch, rows) of the mirror's table: both stacks, as a batch's memory has them
    n_step: int
    mirror: Mirror
    boundary: tuple[int, ...]  # up to which it was drawn


class Mirror:
    """A copy of a replay's observations on a device, see :meth:`Replay.mirror`.

    Example:
        >>> mirror = replay.mirror("cuda")  # doctest: +SKIP
        >>> mirror.upload()  # what was published since the last time
        >>> drawn = mirror.draw(32)
        >>> obs, next_obs = mirror.gather(drawn)  # tensors on the device, (32, stack, *obs_shape)

    For one thread, and one CUDA stream, at a time.
    """

    def __init__(self, replay: Replay, device: Any) -> None:
        import torch

        self._torch = torch
        self._replay = replay
        try:
            self.device = torch.device(device)
        except RuntimeError:
            raise ValueError(f"mirror: {device!r} is no device that torch knows; give 'cuda' or 'cuda:0'") from None
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                f"mirror: {device!r} was asked for, but torch finds no GPU here; sample on the CPU instead"
            )
        self._slots = replay.capacity // replay.lanes
        self._uploaded = [0] * replay.lanes
        self._begun = [0] * replay.lanes  # up to where rows may have been written over, also where an upload failed
        try:
            self.obs_dtype = torch.from_numpy(np.empty(0, replay.obs_dtype)).dtype
        except TypeError as error:
            raise TypeError(f"mirror: torch has no tensors of {replay.obs_dtype} ({error})") from None
        # Rows of large words: gathering them takes an eighth of the loads that bytes would.
        self._row_bytes = replay.obs_bytes
        sizes = ((8, torch.int64), (4, torch.int32), (2, torch.int16), (1, torch.uint8))
        size, self._word = next((size, word) for size, word in sizes if self._row_bytes % size == 0)
        # A row for every slot, and one of zeros for what stacks lack.
        rows = replay.capacity + 1
        self._table = torch.zeros((rows, self._row_bytes // size), dtype=self._word, device=self.device)
        staged_rows = _staged_rows(replay.capacity, self._row_bytes)
        self._stages = [_Stage(torch, staged_rows, self._row_bytes, self.device) for _ in range(_STAGES)]

    @property
    def boundary(self) -> list[int]:
        """Up to which steps of each lane were uploaded: what :meth:`draw` draws from."""
        return list(self._uploaded)

    def upload(self, boundary: Sequence[int] | None = None) -> list[int]:
        """Copy the observations that were published since the last upload, each for the first and only time.

        Args:
            boundary: what :meth:`Replay.boundary` returned, not before the last one; None: all that is published.

        Returns:
            The boundary, from now on that of :meth:`draw`.
        """
        published = self._replay.boundary()
        ends = published if boundary is None else _checked_boundary(boundary)
        if len(ends) != len(published):
            raise ValueError(f"upload: the boundary is of {len(ends)} lanes, the replay has {len(published)}")
        for lane, end in enumerate(ends):
            if not self._uploaded[lane] <= end <= published[lane]:
                raise ValueError(
                    f"upload: the boundary of lane {lane} is step {end}; {self._uploaded[lane]} were uploaded and "
                    f"{published[lane]} are published, give something between"
                )
        waiting = [(lane, self._uploaded[lane], end) for lane, end in enumerate(ends)]
        self._begun = [max(pair) for pair in zip(self._begun, ends, strict=True)]
        number = 0
        while waiting:
            stage = self._stages[number % len(self._stages)]
            stage.wait()
            filled = 0
            reached = []
            while waiting and filled < stage.rows:
                lane, first, end = waiting.pop(0)
                first = max(first, self._oldest(lane, end))
                until = min(end, first + stage.rows - filled)
                filled += self._stage_run(stage, filled, lane, first, until)
                reached.append((lane, until))
                if until < end:
                    waiting.insert(0, (lane, until, end))
            stage.send(self._table, self._word, filled)
            for lane, until in reached:
                self._uploaded[lane] = until
            number += 1
        return self.boundary

    def _oldest(self, lane: int, end: int) -> int:
        """The first step that can be drawn up to ``end``, or later."""
        return max(0, end - (self._slots - self._replay.guard_steps))

    def _stage_run(self, stage: _Stage, at: int, lane: int, first: int, end: int) -> int:
        """Put steps first .. end - 1 of a lane into a stage; how many these were.

        Steps that were overwritten meanwhile are left out, and no others: they cannot be drawn any more, up to whatever
        boundary, since a draw looks whether all of its steps are still in the ring.
        """
        while first < end:
            count = end - first
            if self._replay._ring.copy_observations(lane, first, end, stage.bytes[at : at + count].reshape(-1)):
                stage.places[at : at + count] = lane * self._slots + np.arange(first, end) % self._slots
                return count
            first = max(first + 1, self._replay.boundary()[lane] - self._slots)  # what was refused is gone
        return 0

    def draw(self, batch: int, n_step: int = 1, gamma: float = 0.99, beta: float = 0.4) -> Drawn:
        """What ``replay.sample(batch, n_step, gamma, boundary=mirror.boundary, beta=beta)`` would have drawn.

        Raises:
            NothingToSample: there is no whole transition up to the boundary.
        """
        loan = self._replay._draw(batch, n_step, gamma, self._uploaded, beta)
        _, action, reward, discount, _, index, weight, place = loan.arrays()
        return Drawn(action, reward, discount, index, weight, place, n_step, self, tuple(self._uploaded))

    def gather(self, drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
        """Obs and next_obs of what was drawn, on the device; with n_step=1 views of the same memory.

        Raises:
            RuntimeError: so much was uploaded since the draw that observations of it may be gone.
        """
        self._check(drawn)
        place = self._torch.from_numpy(drawn.place).to(self.device)
        return self._shaped(self._torch.index_select(self._table, 0, place.reshape(-1)), drawn.n_step)

    def gatherer(self, batch: int, n_step: int = 1) -> Gatherer:
        """For batches of one size, in memory that stays where it is: for CUDA graphs."""
        return Gatherer(self, batch, n_step)

    def _check(self, drawn: Drawn) -> None:
        if drawn.mirror is not self:
            raise ValueError("gather: this was drawn by another mirror; gather it there")
        for lane, (then, now) in enumerate(zip(drawn.boundary, self._begun, strict=True)):
            if now - then > self._replay.guard_steps:
                raise RuntimeError(
                    f"gather: {now - then} steps of lane {lane} were uploaded since this was drawn, at most "
                    f"{self._replay.guard_steps} may be; gather before the next upload"
                )

    def _shaped(self, words: torch.Tensor, n_step: int) -> tuple[torch.Tensor, torch.Tensor]:
        stack = self._replay.stack
        rows = stack + 1 if n_step == 1 else 2 * stack
        begin = 1 if n_step == 1 else stack
        found = words.view(self.obs_dtype).view(-1, rows, *self._replay.obs_shape)
        return found[:, :stack], found[:, begin : begin + stack]


def _checked_boundary(boundary: Any) -> list[int]:
    try:
        return [operator.index(end) for end in boundary]
    except TypeError:
        raise TypeError(
            f"upload: boundary {boundary!r} is not what replay.boundary() returns: a whole number of steps for each "
            f"lane"
        ) from None


class Gatherer:
    """Gathers batches of one size into the same memory, see :meth:`Mirror.gatherer`.

    ``load`` copies the places to the device, and belongs outside of a CUDA graph; ``gather`` reads and writes nothing
    but tensors that stay where they are and waits for nothing, so it can be captured. ``obs`` and ``next_obs`` hold the
    batch until the next ``gather``.
    """

    def __init__(self, mirror: Mirror, batch: int, n_step: int) -> None:
        torch = mirror._torch
        mirror._replay._lender.form(batch, n_step, with_observations=False)  # refuses sizes that there are not
        stack = mirror._replay.stack
        rows = stack + 1 if n_step == 1 else 2 * stack
        self._mirror = mirror
        self._n_step = n_step
        self._place = torch.full((batch * rows,), mirror._replay.capacity, dtype=torch.int64, device=mirror.device)
        self._words = mirror._table[:1].repeat(batch * rows, 1)
        self.obs, self.next_obs = mirror._shaped(self._words, n_step)

    def load(self, drawn: Drawn) -> None:
        """Say which batch ``gather`` gathers."""
        self._mirror._check(drawn)
        if drawn.n_step != self._n_step or drawn.place.size != len(self._place):
            raise ValueError(
                f"load: {len(drawn.reward)} transitions of n_step {drawn.n_step} were drawn; this is for "
                f"{len(self.obs)} of n_step {self._n_step}"
            )
        self._place.copy_(self._mirror._torch.from_numpy(drawn.place).reshape(-1))

    def gather(self) -> None:
        """Write the batch into ``obs`` and ``next_obs``."""
        self._mirror._torch.index_select(self._mirror._table, 0, self._place, out=self._words)


class _Stage:
    """Host memory from which observations are uploaded; page-locked where that speeds it up."""

    def __init__(self, torch: Any, rows: int, row_bytes: int, device: Any) -> None:
        pinned = device.type == "cuda"
        self.rows = rows
        self._torch = torch
        self._device = device
        self._frames = torch.empty((rows, row_bytes), dtype=torch.uint8, pin_memory=pinned)
        self._rows = torch.empty(rows, dtype=torch.int64, pin_memory=pinned)
        self._sent = torch.cuda.Event() if pinned else None
        self.bytes: npt.NDArray[np.uint8] = self._frames.numpy()
        self.places: npt.NDArray[np.int64] = self._rows.numpy()

    def wait(self) -> None:
        """Until it may be written again."""
        if self._sent is not None:
            self._sent.synchronize()

    def send(self, table: Any, word: Any, count: int) -> None:
        """The first ``count`` rows to their places in the table."""
        frames = self._frames[:count].to(self._device, non_blocking=True)
        places = self._rows[:count].to(self._device, non_blocking=True)
        table.index_copy_(0, places, frames.view(word))
        if self._sent is not None:
            self._sent.record(self._torch.cuda.current_stream(self._device))
