"""Replay memory in shared memory: written by many, sampled without stopping anyone.

Every observation is stored once. A stack of four is put together when it is looked at, and ``obs`` and ``next_obs`` of
one-step samples are two views of the same five frames.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import math
import os
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from fastrl.engine import native
from fastrl.engine.batches import Batch, BatchBuffer, BatchLender
from fastrl.engine.budget import available_memory_bytes
from fastrl.engine.observer import Observer
from fastrl.engine.prefetch import Prefetcher, checked_priorities
from fastrl.engine.protocol import DEFAULT_STACK
from fastrl.engine.replay_store import DamagedReplay, History, SlotStore, manifests, read_manifest
from fastrl.engine.ring_sizes import (
    DEFAULT_CAPACITY,
    LEAST_SPARE_STEPS,
    guard_steps,
    least_slots,
    needed_bytes,
    ring_bytes,
    room_bytes,
    slots_asked_for,
    what_fits,
)
from fastrl.engine.rules import flag, share, whole_number
from fastrl.engine.saved_replays import require_manifest

if TYPE_CHECKING:
    from fastrl.engine.mirror import Mirror

LaneBusy = native.core.LaneBusy
NothingToSample = native.core.NothingToSample

_MOST_LANES = 65_536
_MOST_OBS_BYTES = 2**32  # of one observation
_DIGEST_WORDS = 2**19  # that are copied at a time, four megabytes, or one slot
_FRAME_SHAPE = (84, 84)  # that a pool writes
_PADDINGS = {"zeros": 0, "first_frame": 1}  # the native enum (csrc/replay/transitions.hpp)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReplayHandle:
    """Where another process of this machine finds a replay, see :meth:`Replay.attach`. Small, and can be pickled."""

    pid: int
    descriptor: int
    inode: int
    region_bytes: int
    lanes: int
    slots: int
    stack: int
    obs_shape: tuple[int, ...]
    obs_dtype: str
    action_shape: tuple[int, ...]
    action_dtype: str
    padding: Literal["zeros", "first_frame"]
    seed: int
    alpha: float | None
    discrete: tuple[int, int] | None = None  # the first action and how many there are, if it is such a space
    history: History = field(default_factory=History)  # see replay_store.py

    @classmethod
    def from_plain(cls, fields: dict[str, Any]) -> ReplayHandle:
        """The handle that ``dataclasses.asdict`` was given, also after JSON, which has no tuples."""
        names = ("obs_shape", "action_shape", "discrete")
        tuples = {name: tuple(fields[name]) for name in names if fields[name] is not None}
        return cls(**{**fields, **tuples, "history": History(**fields["history"])})


class Writer:
    """The only writer of one lane, see :meth:`Replay.writer`. A context manager; for one thread at a time."""

    def __init__(self, replay: Replay, lane: int, continue_episode: bool) -> None:
        obs_like = np.empty(replay.obs_shape, replay.obs_dtype)
        action_like = np.empty(replay.action_shape, replay.action_dtype)
        self._native = native.core.LaneWriter(
            replay._ring, lane, obs_like, action_like, continue_episode, replay._discrete
        )
        self.lane = lane

    def start(self, obs: Any) -> None:
        """Open an episode with its first observation. One that is open is broken off."""
        self._native.start(obs)

    def append(self, action: Any, reward: float, next_obs: Any, terminated: bool, truncated: bool) -> None:
        """What happened in one step, and the observation that it led to, the last one of an episode included.

        Numbers, lists and other types are converted. Floats may be rounded by that; nothing else may change.

        Raises:
            TypeError: floats for whole numbers, or no numbers.
            ValueError: a value does not fit, an action is outside its Discrete space or not finite, or a reward is not.
        """
        self._native.append(action, reward, next_obs, terminated, truncated)

    @property
    def episode_is_open(self) -> bool:
        """Whether :meth:`append` may be called; else :meth:`start` comes first."""
        return bool(self._native.episode_is_open)

    @property
    def next_step(self) -> int:
        """The number of the next step in this lane. Never falls, also when the lane changes hands."""
        return int(self._native.next_step)

    def close(self) -> None:
        """Free the lane. What was written stays."""
        self._native.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Replay:
    """A ring of transitions in shared memory, in lanes that one env each writes.

    Args:
        capacity: transitions in all, the same number in each lane, rounded up; "auto": a million, or as many as fit
            into the memory that is available less 4 GB. More than fits is refused before anything is touched.
        lanes: how many envs write, each its own lane.
        obs_shape, obs_dtype: of one observation: a single frame, not a stack.
        stack: how many observations are looked at together; 1 for those that are no frames.
        action: the space of the actions; None: whole numbers.
        seed: of what is drawn.
        padding: what a stack has before its episode's first observation: "zeros" or "first_frame" (again and again).
            As the protocol of the run says, the same for acting and for sampling.
        alpha: prioritised replay with this exponent (Schaul et al. 2015: 0.6); None: uniform.

    Example:
        >>> replay = Replay(capacity=1000, lanes=1, obs_shape=(3,), obs_dtype="float32", stack=1)
        >>> with replay.writer(0) as writer:
        ...     writer.start(np.zeros(3, np.float32))
        ...     writer.append(1, 0.5, np.ones(3, np.float32), terminated=True, truncated=False)
        >>> obs, action, reward, discount, next_obs, index, weight = replay.sample(2)
        >>> next_obs.shape, reward.tolist(), discount.tolist()
        ((2, 1, 3), [0.5, 0.5], [0.0, 0.0])
    """

    def __init__(
        self,
        capacity: int | Literal["auto"] = DEFAULT_CAPACITY,
        lanes: int = 8,
        obs_shape: Sequence[int] = (84, 84),
        obs_dtype: npt.DTypeLike = "uint8",
        stack: int = DEFAULT_STACK,
        action: spaces.Space[Any] | None = None,
        seed: int = 0,
        *,
        padding: Literal["zeros", "first_frame"] = "zeros",
        alpha: float | None = None,
        _least_spare_steps: int = LEAST_SPARE_STEPS,
    ) -> None:
        self._describe("", lanes, obs_shape, obs_dtype, stack, seed, padding, alpha)
        self.action_shape, self.action_dtype = _action_layout(action)
        self._discrete = (int(action.start), int(action.n)) if isinstance(action, spaces.Discrete) else None
        self._spare_steps = _least_spare_steps
        self._slots = self._resolve_slots(capacity)
        self._history = History()
        self._adopt(native.core.Ring(self._shape(self._slots)))

    def _describe(
        self, at: str, lanes: Any, obs_shape: Any, obs_dtype: Any, stack: Any, seed: Any, padding: Any, alpha: Any
    ) -> None:
        """Take what was asked for, or refuse it; ``at`` begins each message."""
        self.lanes = whole_number(f"{at}lanes", lanes, 1, _MOST_LANES)
        self.obs_shape = _checked_shape(f"{at}obs_shape", obs_shape)
        self.obs_dtype = _checked_dtype(f"{at}obs_dtype", obs_dtype)
        if self.obs_bytes > _MOST_OBS_BYTES:
            raise ValueError(
                f"{at}obs_shape: {self.obs_shape} of {self.obs_dtype} is {self.obs_bytes:,} bytes an observation; at "
                f"most {_MOST_OBS_BYTES:,} are possible"
            )
        self.stack = whole_number(f"{at}stack", stack, 1, 64)
        self.seed = whole_number(f"{at}seed", seed, 0, 2**64 - 1)
        if padding not in tuple(_PADDINGS):
            raise ValueError(f"{at}padding: {padding!r} is not one of {', '.join(map(repr, _PADDINGS))}")
        self.padding: Literal["zeros", "first_frame"] = padding
        self.alpha = None if alpha is None else share(f"{at}alpha:", alpha)

    def _adopt(self, ring: Any) -> None:
        self._ring = ring
        self._pid = os.getpid()
        self._sampler = native.core.Sampler(ring, self.seed, self.alpha)
        self._lender = BatchLender(
            ring,
            np.empty(self.obs_shape, self.obs_dtype),
            np.empty(self.action_shape, self.action_dtype),
            most_steps=self._slots - self._least_slots() + 1,
        )
        self._made_prefetcher: weakref.ref[Prefetcher] | None = None

    def _shape(self, slots: int) -> dict[str, int]:
        return {
            "lanes": self.lanes,
            "slots": slots,
            "stack": self.stack,
            "obs_bytes": self.obs_bytes,
            "action_bytes": math.prod(self.action_shape) * self.action_dtype.itemsize,
        }

    def _resolve_slots(self, capacity: Any) -> int:
        shape, available, prioritised = self._shape(0), available_memory_bytes(), self.alpha is not None
        slots = slots_asked_for(capacity, shape, self._least_slots(), available, prioritised)
        needed = needed_bytes(shape, slots, prioritised)
        if isinstance(capacity, str):
            _log.info(
                "replay: %s transitions (%.1f GB; %.1f GB of memory are available)",
                f"{slots * self.lanes:,}",
                needed / 1e9,
                available / 1e9,
            )
        elif needed > room_bytes(available):
            raise MemoryError(
                f"capacity: {capacity:,} transitions need {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are "
                f"available; {what_fits(shape, self._least_slots(), available, prioritised)}"
            )
        return slots

    def _least_slots(self) -> int:
        return least_slots(self.stack, self._spare_steps)

    # ---- what it is

    @property
    def obs_bytes(self) -> int:
        """Of one observation."""
        return math.prod(self.obs_shape) * self.obs_dtype.itemsize

    @property
    def guard_steps(self) -> int:
        """How many of a full lane's oldest steps are left alone, so that its writer may go on while one samples."""
        return guard_steps()

    @property
    def capacity(self) -> int:
        """Transitions that fit, all lanes together."""
        return self._slots * self.lanes

    @property
    def region_bytes(self) -> int:
        """Shared memory that it takes, all of it from the beginning."""
        return ring_bytes(self._shape(0), self._slots)

    def __len__(self) -> int:
        """Steps that can be looked at, all lanes together."""
        kept = self._slots - self.guard_steps
        return sum(min(int(end), kept) for end in self._ring.published())

    def stats(self) -> dict[str, Any]:
        """Counts since the beginning.

        Per lane ``steps_published``, ``lanes_written`` (whether it has a writer now), ``writer_pids`` (of the last
        writer) and ``silent_s`` (seconds since its newest step, or since its writer took it); both None where there
        never was one. ``race_rejects``: rows drawn again because a writer came round meanwhile; ``stale_updates``:
        priorities of transitions that were gone.
        """
        self._require_here("stats")
        lanes = [self._ring.lane_status(lane) for lane in range(self.lanes)]
        return {
            "steps_published": self._ring.published(),
            "lanes_written": [written for written, _, _ in lanes],
            "writer_pids": [pid for _, pid, _ in lanes],
            "silent_s": [silent_s for _, _, silent_s in lanes],
            "batches": self._sampler.batches,
            "race_rejects": self._sampler.race_rejects,
            "stale_updates": self._sampler.stale_updates,
            "region_bytes": self.region_bytes,
        }

    def stalls(self, after_s: float = 2.0) -> dict[int, str]:
        """By lane, where the writer has been silent for so long, a sentence: which process, its newest step, its age.

        Nothing here waits for a writer, so a stalled one holds nobody up; but somebody may want to know.

        Args:
            after_s: seconds without a step.

        >>> import fastrl
        >>> replay = fastrl.Replay(100, lanes=2, obs_shape=(3,), obs_dtype="float32", stack=1)
        >>> replay.stalls()  # nobody has written yet
        {}
        """
        self._require_here("stalls")
        if isinstance(after_s, bool) or not (isinstance(after_s, Real | np.number) and 0 <= after_s < 2**63):
            raise ValueError(f"stalls: after_s {after_s!r:.40} is not a number of seconds from 0 on")
        return dict(self._ring.stalls(float(after_s)))

    # ---- writing

    def writer(self, lane: int, continue_episode: bool = False) -> Writer:
        """The only writer of ``lane``.

        Args:
            lane: which.
            continue_episode: go on with the episode that the lane was in, because its env was restored too. Else that
                one is left without an end, and the writer begins with ``start``.

        Raises:
            LaneBusy: the lane has one, in this process or another.
        """
        self._require_here("writer")
        return Writer(
            self,
            whole_number("writer: lane", lane, 0, self.lanes - 1),
            flag("writer: continue_episode", continue_episode),
        )

    def sink(self, continue_episodes: bool = False, *, first_lane: int = 0, lanes: int | None = None) -> Any:
        """What an ``AtariPool(sink=...)`` writes into: env i becomes lane ``first_lane + i``.

        Args:
            continue_episodes: of envs that were restored with the replay.
            first_lane: pools of several processes share a replay, each with lanes of its own.
            lanes: how many; None: all from the first on. The sink holds them as long as it lives.

        One pool at a time writes into it, until it is closed, with the stack and padding of this replay.

        Raises:
            LaneBusy: one of them has a writer.
        """
        self._require_here("sink")
        frames = (self.obs_shape, self.obs_dtype) == (_FRAME_SHAPE, np.dtype(np.uint8))
        if not frames or (self.action_shape, self.action_dtype) != ((), np.dtype(np.int64)):
            raise ValueError(
                f"sink: a pool writes 84x84 bytes and discrete actions (int64), the replay is for observations of "
                f"{self.obs_dtype} {self.obs_shape} and actions of {self.action_dtype} {self.action_shape}; make one "
                f"with obs_shape=(84, 84) and obs_dtype='uint8'"
            )
        first = whole_number("sink: first_lane", first_lane, 0, self.lanes - 1)
        count = self.lanes - first if lanes is None else whole_number("sink: lanes", lanes, 1, self.lanes - first)
        going_on = flag("sink: continue_episodes", continue_episodes)
        return native.core.RingSink(self._ring, first, count, _PADDINGS[self.padding], going_on)

    # ---- reading

    def stacks(self, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """The newest stack of every lane, (lanes, stack, *obs_shape): what a policy acts on."""
        self._require_here("stacks")
        shape = (self.lanes, self.stack, *self.obs_shape)
        if out is None:
            out = np.empty(shape, self.obs_dtype)
        elif not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != self.obs_dtype:
            raise ValueError(f"stacks: out must be a {self.obs_dtype} array of shape {shape}")
        self._ring.stacks(out, _PADDINGS[self.padding])
        return out

    def boundary(self) -> list[int]:
        """How far each lane is published now. Given to :meth:`sample`, it samples as if nothing came after.

        That holds for up to ``guard_steps`` more steps written to a lane that is full. With more of them its oldest
        steps, which could have been drawn, are overwritten, and draws of them are repeated with others.
        """
        self._require_here("boundary")
        return list(self._ring.published())

    def require(self, batch: int, n_step: int = 1) -> None:
        """Raise ValueError if no such batch could ever be drawn from a replay of this size."""
        self._lender.form(batch, n_step)

    def buffer(self, batch: int, n_step: int = 1, pin_memory: bool = False) -> BatchBuffer:
        """Memory for :meth:`sample`'s ``out``; ``pin_memory`` for copies to a GPU while something else runs."""
        form = self._lender.form(batch, n_step)
        return BatchBuffer(self._lender.bank(flag("buffer: pin_memory", pin_memory)).lend(form), n_step, self._lender)

    def sample(
        self,
        batch: int,
        n_step: int = 1,
        gamma: float = 0.99,
        out: BatchBuffer | None = None,
        *,
        boundary: Sequence[int] | None = None,
        beta: float = 0.4,
    ) -> Batch:
        """Draw ``batch`` transitions.

        Args:
            batch: how many.
            n_step: over how many steps rewards are summed; an end of the episode comes first.
            gamma: discount of a step.
            out: memory from :meth:`buffer`; without it the batch is the caller's as long as one of its arrays is held.
                Its memory is used again when all are gone.
            boundary: what :meth:`boundary` returned earlier; None: everything that is published. With priorities
                never before the one of the batch before.
            beta: exponent of the importance weights, where the replay is prioritised.

        With a prefetcher (:meth:`prefetch`) it first waits until all is done that was asked for there.

        Raises:
            NothingToSample: there is no whole transition yet.
        """
        self._settle("sample")
        if out is None:
            loan = self._lender.lend(batch, n_step)
        elif not isinstance(out, BatchBuffer) or len(out.batch.reward) != batch or out.n_step != n_step:
            raise ValueError(f"sample: out must be what replay.buffer({batch}, {n_step}) made")
        elif not out.fits(self._lender):
            raise ValueError(
                "sample: out was made by a replay of other observations or actions; use this one's buffer()"
            )
        else:
            self._lender.form(batch, n_step)  # 32.0 equals 32
            loan = out.loan
        gamma, beta = share("sample: gamma", gamma), share("sample: beta", beta)
        self._sampler.sample(loan, n_step, gamma, _PADDINGS[self.padding], boundary, beta)
        return Batch.of(loan) if out is None else out.batch

    def _draw(self, batch: int, n_step: int, gamma: float, boundary: Sequence[int], beta: float) -> Any:
        """The loan of a batch with places of a mirror instead of observations; else what :meth:`sample` draws."""
        self._settle("draw")
        gamma, beta = share("draw: gamma", gamma), share("draw: beta", beta)
        loan = self._lender.lend(batch, n_step, with_observations=False)
        self._sampler.sample(loan, n_step, gamma, _PADDINGS[self.padding], boundary, beta)
        return loan

    def mirror(self, device: Any = "cuda") -> Mirror:
        """A copy of the observations in the memory of a device, see :class:`fastrl.engine.mirror.Mirror`."""
        from fastrl.engine.mirror import Mirror

        self._require_here("mirror")
        return Mirror(self, device)

    def prefetch(
        self,
        batch: int,
        depth: int = 2,
        n_step: int = 1,
        gamma: float = 0.99,
        beta: float = 0.4,
        pin_memory: bool = False,
    ) -> Prefetcher:
        """A thread that draws batches while the learner does something else, see :class:`Prefetcher`.

        Args:
            batch: how many transitions a batch has.
            depth: how many batches may be asked for and not taken; so many take memory beside those that are held.
            n_step: as in :meth:`sample`, as are gamma and beta.
            gamma: discount of a step.
            beta: exponent of the importance weights, unless a request gives its own.
            pin_memory: for copies to a GPU while something else runs, see :meth:`Batch.guard`.

        Example:
            >>> replay = Replay(capacity=1000, lanes=1, obs_shape=(3,), obs_dtype="float32", stack=1)
            >>> with replay.writer(0) as writer:
            ...     writer.start(np.zeros(3, np.float32))
            ...     writer.append(1, 0.5, np.ones(3, np.float32), terminated=True, truncated=False)
            >>> with replay.prefetch(batch=32) as prefetcher:
            ...     prefetcher.request()
            ...     batch = prefetcher.take()  # drawn meanwhile
            >>> batch.obs.shape
            (32, 1, 3)
        """
        self._require_here("prefetch")
        if self._prefetcher is not None:
            raise RuntimeError("prefetch: this replay has a prefetcher already; close() that one first")
        gamma, beta = share("prefetch: gamma", gamma), share("prefetch: beta", beta)
        prefetcher = Prefetcher(
            self._sampler,
            self._lender.bank(flag("prefetch: pin_memory", pin_memory)),
            self._lender.form(batch, n_step),
            depth=whole_number("prefetch: depth", depth, 1, 1024),
            n_step=n_step,
            gamma=gamma,
            padding=_PADDINGS[self.padding],
            beta=beta,
            prioritised=self.alpha is not None,
        )
        self._made_prefetcher = weakref.ref(prefetcher)
        return prefetcher

    def update_priorities(self, index: npt.NDArray[np.int64], priority: npt.ArrayLike) -> int:
        """Give transitions that were sampled new priorities (not yet to the power of alpha).

        Those that were gone when a batch was drawn last are left alone and counted (``stale_updates``): what is written
        between two draws is no matter, so that equal draws and updates have equal effects.

        With a prefetcher it first waits until all is done that was asked for there; the prefetcher's own
        ``update_priorities`` does not.

        Returns:
            How many were still there.
        """
        self._settle("update_priorities")
        return int(self._sampler.update(*checked_priorities(index, priority, self.alpha is not None)))

    # ---- on disk

    def save(self, directory: str | os.PathLike[str], keep: int = 2) -> Path:
        """Write what is new since the last save into ``directory``, and a manifest that names all of it.

        Writers are to rest meanwhile. Whatever happens, earlier saves stay whole.

        Args:
            directory: of this replay, and of those that it went on from; made if it is not there.
            keep: how many saves can be loaded; what only older ones need is deleted.

        Returns:
            The manifest, for :meth:`load`.

        Raises:
            ValueError: all saves in ``directory`` are those of another replay, which this one did not go on from.
        """
        self._require_here("save")
        whole_number("save: keep", keep, 1)
        pending = self._prefetcher.pending if self._prefetcher is not None else 0
        if pending > 0:
            raise RuntimeError(
                f"save: {pending} batches were asked for and not taken, which a load could not draw "
                f"again; take() them first, or close the prefetcher"
            )
        self._settle("save")
        priorities = self._sampler.state()
        described = None
        if priorities is not None:
            n_step, largest, first, entered, ends, weights = priorities
            described = {
                "n_step": n_step,
                "largest": largest,
                "first": first,
                "entered": entered,
                "ends": ends,
                "weights": base64.b64encode(zlib.compress(weights.tobytes(), 1)).decode(),
            }
        state = {
            **self._saved_arguments(),
            "batches": self._sampler.batches,
            "priorities": described,
        }
        kept_steps = self._slots - self.guard_steps
        return self._store(Path(directory)).save(self._ring, self.boundary(), kept_steps, state, keep)

    def _saved_arguments(self) -> dict[str, Any]:
        """What a save and the replay that loads it must have in common besides the shape, as JSON has it."""
        return {
            "obs_shape": list(self.obs_shape),
            "obs_dtype": self.obs_dtype.str,
            "action_shape": list(self.action_shape),
            "action_dtype": self.action_dtype.str,
            "discrete": None if self._discrete is None else list(self._discrete),
            "padding": self.padding,
            "alpha": self.alpha,
            "seed": self.seed,
        }

    def load(self, saved: str | os.PathLike[str]) -> None:
        """Take what :meth:`save` wrote into this replay, which must be new and made with the same arguments.

        What is drawn afterwards is what would have been drawn after the save.

        Args:
            saved: a manifest, or a directory: then its newest save.

        Raises:
            DamagedReplay: a file is missing or not what was saved; nothing was taken. (Of a file that is changed while
                it is loaded a part may have been: make another replay then.)
            LaneBusy: a lane has a writer; nothing was taken.
            ValueError: it was saved from a replay of other arguments.
        """
        self._require_here("load")
        path = Path(saved)
        found: list[Path] = []
        if path.is_dir():
            found = manifests(path)
            if not found:
                raise FileNotFoundError(f"load: {path} has no saved replay")
            path = found[0]
        elif not path.exists():
            raise FileNotFoundError(
                f"load: {path} is not there; give a directory that was saved to, or a manifest in it"
            )
        try:
            self._load(path)
        except DamagedReplay as error:
            if len(found) < 2:
                raise
            raise DamagedReplay(f"{error}; an older save may be whole: load it by its name, {found[1]}") from None

    def _load(self, path: Path) -> None:
        manifest = read_manifest(path)
        mine = {"shape": self._shape(self._slots), **self._saved_arguments()}
        for name, value in mine.items():
            if manifest.get(name) != value:
                raise ValueError(
                    f"load: {path} was saved from a replay with {name} {manifest.get(name)}, this has {value}"
                )
        self._settle("load")
        if any(self.boundary()):
            raise RuntimeError("load: this replay has been written to; load into a new one")
        weights = require_manifest(manifest, path)
        store = self._store(path.parent)
        lanes = store.verify(manifest)
        history = History.after(manifest)
        with contextlib.closing(native.core.RingRestorer(self._ring)) as restorer:  # holds all lanes, or none
            store.restore(lanes, restorer)
        self._history = history
        self._sampler.batches = manifest["batches"]
        if weights is not None:
            of_these = {**manifest["priorities"], "weights": np.frombuffer(weights, np.uint64)}
            self._sampler.restore(gamma=0.0, padding=_PADDINGS[self.padding], **of_these)

    def digest(self) -> str:
        """A hash of all that can still be drawn, and of what will be drawn next. Writers are to rest meanwhile."""
        self._require_here("digest")
        found = hashlib.sha256(repr((self._shape(self._slots), self.seed, self._sampler.batches)).encode())
        for lane, end in enumerate(self.boundary()):
            at = max(0, end - (self._slots - self.guard_steps))
            found.update(repr((lane, at, end)).encode())
            while at < end:
                until = min(end, at + max(1, _DIGEST_WORDS // self._ring.slot_words))
                found.update(np.ascontiguousarray(self._ring.copy_slots(lane, at, until)).data)
                at = until
        priorities = self._sampler.state()
        if priorities is not None:
            *plain, weights = priorities
            found.update(repr(plain).encode())
            found.update(np.ascontiguousarray(weights).data)
        return found.hexdigest()

    def _store(self, directory: Path) -> SlotStore:
        return SlotStore(directory, self._shape(self._slots), self._ring.slot_words, self._history)

    # ---- other processes

    def __reduce__(self) -> NoReturn:
        raise TypeError("pickle: a replay lies in shared memory; send its handle() and Replay.attach(handle) there")

    def handle(self) -> ReplayHandle:
        """Where other processes of this user and machine find it, while this process lives."""
        self._require_here("handle")
        pid, descriptor, inode, region_bytes = self._ring.address()
        return ReplayHandle(
            pid=pid,
            descriptor=descriptor,
            inode=inode,
            region_bytes=region_bytes,
            lanes=self.lanes,
            slots=self._slots,
            stack=self.stack,
            obs_shape=self.obs_shape,
            obs_dtype=self.obs_dtype.str,
            action_shape=self.action_shape,
            action_dtype=self.action_dtype.str,
            padding=self.padding,
            seed=self.seed,
            alpha=self.alpha,
            discrete=self._discrete,
            history=self._history,
        )

    @classmethod
    def attach(cls, handle: ReplayHandle) -> Replay:
        """The replay of another process: to write lanes of it, or to look.

        It has the same seed, so that its first batch is drawn as the replay's own first one was: who is to learn from
        other batches than another process draws some, or takes another ``dataclasses.replace(handle, seed=...)``.

        Raises:
            ConnectionError: it is gone, belongs to somebody else, or is not what the handle says.
            TypeError, ValueError: the handle was tampered with.
        """
        return cls._attached(handle, read_only=False)

    @classmethod
    def observe(cls, handle: ReplayHandle) -> Observer:
        """Look at the replay of another process without being able to change it, see :class:`Observer`.

        Raises:
            ConnectionError: it is gone, belongs to somebody else, or is not what the handle says.
            TypeError, ValueError: the handle was tampered with.
        """
        return Observer(cls._attached(handle, read_only=True))

    @classmethod
    def _attached(cls, handle: ReplayHandle, read_only: bool) -> Replay:
        if not isinstance(handle, ReplayHandle):
            raise TypeError(f"attach: {type(handle).__name__} is not what Replay.handle() returned")
        self = cls.__new__(cls)
        self._describe(
            "attach: ", handle.lanes, handle.obs_shape, handle.obs_dtype, handle.stack, handle.seed, handle.padding,
            handle.alpha,
        )  # fmt: skip
        self.action_shape = _checked_shape("attach: action_shape", handle.action_shape, scalar=True)
        self.action_dtype = _checked_dtype("attach: action_dtype", handle.action_dtype)
        action_bytes = math.prod(self.action_shape) * self.action_dtype.itemsize
        if action_bytes > _MOST_OBS_BYTES:
            raise ValueError(
                f"attach: action_shape: {self.action_shape} is {action_bytes:,} bytes; the handle is damaged, take "
                f"another"
            )
        self._discrete, self._history = _checked_discrete("attach: discrete", handle.discrete), handle.history
        if not isinstance(self._history, History):
            raise TypeError(f"attach: history: {self._history!r} is not what Replay.handle() returned")
        self._spare_steps = LEAST_SPARE_STEPS
        self._slots = whole_number("attach: slots", handle.slots, native.core.guard_steps + self.stack + 1, 2**40)
        place = [
            whole_number(f"attach: {name}", getattr(handle, name), least, most)
            for name, least, most in (
                ("pid", 1, 2**31 - 1), ("descriptor", 0, 2**31 - 1), ("inode", 0, 2**64 - 1),
                ("region_bytes", 0, 2**63 - 1),
            )
        ]  # fmt: skip
        self._adopt(native.core.Ring.attach(*place, self._shape(self._slots), read_only))
        return self

    # ---- checks

    def _require_here(self, operation: str) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"{operation}: this replay was made by process {self._pid}, from which this one was forked; use "
                f"Replay.attach(handle) here, with a handle that was taken there"
            )

    @property
    def _prefetcher(self) -> Prefetcher | None:
        """The one that is open."""
        found = None if self._made_prefetcher is None else self._made_prefetcher()
        return None if found is None or found.closed else found

    def _settle(self, operation: str) -> None:
        """Before the sampler is used: whatever its prefetcher was asked for comes first."""
        self._require_here(operation)
        prefetcher = self._prefetcher
        if prefetcher is not None:
            prefetcher.drain(operation)


def _checked_discrete(name: str, value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"{name}: {value!r} is not the first action and how many there are")
    first = whole_number(f"{name}: first", value[0], -(2**63), 2**63 - 1)
    return first, whole_number(f"{name}: count", value[1], 1, 2**63 - 1)


def _checked_shape(name: str, shape: Any, scalar: bool = False) -> tuple[int, ...]:
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"{name}: {shape!r} is not a tuple of sizes such as (84, 84)")
    sizes = tuple(whole_number(name, size, 1, 2**31) for size in shape)
    if not sizes and not scalar:
        raise ValueError(f"{name}: {shape!r} is empty; an observation of one number has shape (1,)")
    return sizes


def _checked_dtype(name: str, dtype: Any) -> np.dtype[Any]:
    try:
        if dtype is None:
            raise TypeError("numpy would take it for float64")
        found: np.dtype[Any] = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"{name}: {dtype!r} is not a type of numbers ({error})") from None
    if found.kind not in "biuf":
        raise TypeError(f"{name}: {found} is not a type of numbers such as 'uint8' or 'float32'")
    # In this machine's byte order (others are turned round when they are written), and numpy's one object for it, by
    # which the writer knows an array that it can take as it is.
    return np.dtype(found.type)


def _action_layout(action: spaces.Space[Any] | None) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of one action."""
    if action is None or isinstance(action, spaces.Discrete):
        return (), np.dtype(np.int64)
    if isinstance(action, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)) and action.dtype is not None:
        return tuple(action.shape), _checked_dtype("action", action.dtype)
    raise TypeError(f"action: {action!r} is not a Discrete, Box, MultiDiscrete or MultiBinary space")
