"""What a run will take, worked out from a trial and what was asked for, before anything large is allocated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fastrl.engine.mirror import mirror_bytes_of, replay_device, stages_bytes_of
from fastrl.engine.ring_sizes import (
    guard_steps,
    least_slots,
    most_slots,
    priorities_bytes,
    ring_bytes,
    room_bytes,
    slots_asked_for,
)
from fastrl.runs import units
from fastrl.runs.device_memory import DeviceUse
from fastrl.runs.trial import Trial, TriedEvaluation


@dataclass(frozen=True)
class Part:
    """One of the things that make up a sum: bytes, or seconds."""

    name: str
    amount: float
    why: str


@dataclass(frozen=True)
class Plan:
    """What a run will take at the most, and for how long.

    The processes beside the trainer's are workers, and the one that evaluates from time to time.
    """

    memory: list[Part]
    disk: list[Part]
    time: list[Part]
    available_bytes: int  # of memory, now
    free_disk_bytes: int  # where runs go, now
    written_bytes: float  # more, while a checkpoint is written
    most_checkpoints: int  # that fit on the disk, of those that are kept; 0: not one
    replay_capacity: int | None  # transitions; None: there is no replay
    most_capacity: int | None  # that fit into the available memory
    device: list[Part]  # of a GPU's memory; empty: it learns on the CPU
    device_name: str
    free_device_bytes: int  # now, where the driver has its part for a process
    mirrored: bool  # whether the device has the replay's observations too
    most_mirrored: int | None  # transitions that it has room for; None: there is no mirror
    others_cores: float  # that other programs took while it was tried, of so many:
    usable_cores: int

    @property
    def memory_bytes(self) -> float:
        """In all."""
        return sum(part.amount for part in self.memory)

    @property
    def disk_bytes(self) -> float:
        """In all, while the last checkpoint is written."""
        return sum(part.amount for part in self.disk) + self.written_bytes

    @property
    def fits_on_disk(self) -> bool:
        """Whether there is room enough."""
        return self.disk_bytes <= self.free_disk_bytes

    @property
    def device_bytes(self) -> float:
        """In all, beside what the driver has at the start."""
        return sum(part.amount for part in self.device)

    @property
    def fits_on_device(self) -> bool:
        """Whether there is room enough."""
        return self.device_bytes <= self.free_device_bytes

    @property
    def time_s(self) -> float:
        """In all."""
        return sum(part.amount for part in self.time)

    @property
    def fits(self) -> bool:
        """Whether there is memory enough."""
        enough_for_the_ring = self.most_capacity is None or (self.replay_capacity or 0) <= self.most_capacity
        return enough_for_the_ring and self.memory_bytes <= self.available_bytes


def plan(config: Any, trial: Trial, available_bytes: int, free_disk_bytes: int) -> Plan:
    """Work it out.

    Args:
        config: of the run that is planned.
        trial: of the same configuration.
        available_bytes: of memory.
        free_disk_bytes: where runs go.
    """
    steps, warm_up = int(config.steps), min(config.steps, getattr(config, "warm_up_steps", 0))
    times = [Part("start and end", trial.start_s, "imports, games, the last checkpoint")]
    if trial.warm_up_steps_per_s is not None:
        why = f"{warm_up:,} steps at {trial.warm_up_steps_per_s:,.0f} a second"
        times.append(Part("warm-up", warm_up / trial.warm_up_steps_per_s, why))
    else:
        warm_up = 0
    why = f"{steps - warm_up:,} steps at {trial.steps_per_s:,.0f} a second"
    times.append(Part("learning", (steps - warm_up) / trial.steps_per_s, why))
    if trial.evaluation is not None:
        times.append(_evaluations(config, trial, trial.evaluation, sum(part.amount for part in times)))
    whole_s = sum(part.amount for part in times)

    learnt = trial.networks_bytes + trial.optimiser_bytes
    memory = [
        Part("networks", trial.networks_bytes, "weights, also of targets and other copies"),
        Part("optimiser", trial.optimiser_bytes, "what it remembers of each weight"),
        Part("trainer", trial.trainer_bytes - trial.replay_bytes - learnt, "Python, torch, games, batches, gradients"),
    ]
    if trial.workers_bytes:
        memory.append(Part("its other processes", trial.workers_bytes, "workers, with their games"))
    if trial.evaluation is not None:
        memory.append(Part("evaluation", trial.evaluation.memory_bytes, "a process of its own, from time to time"))
    gpu = None if trial.device is None else _Gpu(config, trial, trial.device)
    if gpu is not None and not gpu.use.locked_is_counted:
        memory.append(Part("page-locked", gpu.use.locked_bytes, "what the GPU copies from and to"))
    rest = int(sum(part.amount for part in memory))

    capacity = most = kept_slots = None
    if trial.replay_shape is not None:
        shape = trial.replay_shape
        lanes = shape["lanes"]

        prioritised = bool(getattr(config, "prioritised", False))

        def beside_bytes(slots: int) -> int:
            return priorities_bytes(shape, slots, prioritised) + (
                0 if gpu is None else gpu.more_locked_bytes(slots * lanes)
            )

        room = available_bytes - rest
        slots = slots_asked_for(config.replay_capacity, shape, least_slots(shape["stack"]), room, prioritised)
        capacity, most = slots * lanes, most_slots(shape, room_bytes(room), beside_bytes) * lanes
        each = ring_bytes(shape, slots) / capacity
        memory.insert(0, Part("replay", ring_bytes(shape, slots), f"{capacity:,} transitions of {each:,.0f} bytes"))
        if priorities := priorities_bytes(shape, slots, prioritised):
            memory.insert(1, Part("priorities", priorities, "sums over all transitions"))
        if gpu is not None and (more := gpu.more_locked_bytes(capacity)):
            memory.append(Part("stages", more, "page-locked, larger than a small replay's, for its copy on the GPU"))
        if config.checkpoint_replay:
            kept_slots = (slots - guard_steps()) * lanes

    between = _steps_between_checkpoints(config, steps / whole_s)
    saves = min(config.keep_checkpoints, 1 + (steps - 1) // between)
    disk = _on_disk(config, trial, saves, between, kept_slots)
    found = Plan(
        memory=memory,
        disk=disk,
        time=times,
        available_bytes=available_bytes,
        free_disk_bytes=free_disk_bytes,
        written_bytes=trial.checkpoint_bytes,
        most_checkpoints=saves,
        replay_capacity=capacity,
        most_capacity=most,
        device=[] if gpu is None else gpu.parts(capacity),
        device_name="" if gpu is None else gpu.use.name,
        free_device_bytes=0 if gpu is None else gpu.use.free_bytes,
        mirrored=gpu is not None and gpu.mirror_bytes(capacity) > 0,
        most_mirrored=None if gpu is None else gpu.most_mirrored(capacity),
        others_cores=trial.others_cores,
        usable_cores=trial.usable_cores,
    )
    while found.most_checkpoints and not found.fits_on_disk:
        fewer = found.most_checkpoints - 1
        found = replace(found, disk=_on_disk(config, trial, fewer, between, kept_slots), most_checkpoints=fewer)
    return replace(found, disk=disk)


class _Gpu:
    """What a run takes of one: what the trial took, but for the replay's copy, whose size is the run's own.

    Args:
        config: of the run.
        trial: of the same configuration.
        use: that the trial made of it.
    """

    def __init__(self, config: Any, trial: Trial, use: DeviceUse) -> None:
        self.use, self._trial = use, trial
        self._wanted = getattr(config, "replay_device", "cpu")
        shape = trial.replay_shape or {"lanes": 1, "slots": 0, "obs_bytes": 0}
        self._lanes, self._obs_bytes = shape["lanes"], shape["obs_bytes"]
        self._tried_capacity = shape["lanes"] * shape["slots"] if trial.mirrored else None
        tried = 0 if self._tried_capacity is None else mirror_bytes_of(self._tried_capacity, self._obs_bytes)
        self._tensors_bytes = use.allocated_bytes - tried
        self._rest_bytes = use.reserved_bytes - tried + use.driver_bytes

    def mirror_bytes(self, capacity: int | None) -> int:
        """Of the copy of a replay's observations; 0: such a replay gets none."""
        if capacity is None or self._wanted == "cpu":
            return 0
        whole = mirror_bytes_of(capacity, self._obs_bytes)
        # The trainer looks when its networks are there, and nothing else is.
        free = self.use.free_bytes - self._trial.networks_bytes - self._trial.optimiser_bytes
        chosen = self._wanted if self._wanted == "cuda" else replay_device("auto", whole, max(0, free))
        return whole if chosen == "cuda" else 0

    def more_locked_bytes(self, capacity: int) -> int:
        """Page-locked memory beyond the trial's, for uploads to a larger copy."""
        if self._tried_capacity is None or not self.mirror_bytes(capacity):
            return 0
        here, tried = (
            sum(_power_of_two(piece) for piece in stages_bytes_of(transitions, self._obs_bytes))
            for transitions in (capacity, self._tried_capacity)
        )
        return max(0, here - tried)

    def most_mirrored(self, capacity: int | None) -> int | None:
        """Transitions whose copy has room; None: there is none."""
        if not self.mirror_bytes(capacity):
            return None
        most = (self.use.free_bytes - self._rest_bytes) // self._obs_bytes - 1
        return max(0, most // self._lanes * self._lanes)

    def parts(self, capacity: int | None) -> list[Part]:
        """What is where."""
        trial, use = self._trial, self.use
        learnt = trial.networks_bytes + trial.optimiser_bytes
        found = [
            Part("networks", trial.networks_bytes, "weights, also of targets and other copies"),
            Part("optimiser", trial.optimiser_bytes, "what it remembers of each weight"),
            Part("batches", self._tensors_bytes - learnt, "and gradients, activations, what graphs hold: as measured"),
            Part("torch", use.reserved_bytes - use.allocated_bytes, "what it keeps for the next tensors, as measured"),
            Part("driver", use.driver_bytes, "kernels and graphs that came in the trial, or others' use of it"),
        ]
        if mirror := self.mirror_bytes(capacity):
            way = "as asked for" if self._wanted == "cuda" else "in at most half of what is free"
            found.insert(0, Part("replay", mirror, f"observations of {capacity:,} transitions, {way}"))
        return found


def _power_of_two(size: int) -> int:
    """What torch takes of page-locked memory for a piece."""
    return 1 << max(0, size - 1).bit_length()


def _on_disk(config: Any, trial: Trial, saves: int, between: int, kept_slots: int | None) -> list[Part]:
    """What lies there at the end.

    Args:
        config: of the run.
        trial: of the same configuration.
        saves: checkpoints that are kept.
        between: steps from one to the next.
        kept_slots: transitions that a saved replay has at the most; None: none is saved.
    """
    steps = int(config.steps)
    disk = [Part("checkpoints", saves * trial.checkpoint_bytes, f"{saves}, without replays")]
    if trial.evaluation is not None:
        disk.append(Part("the best weights", trial.evaluation.snapshot_bytes, "by evaluation"))
    rows = steps // config.log_every_steps
    disk.append(Part("metrics", rows * trial.row_bytes, f"{rows:,} rows, and the same as TensorBoard events"))
    if kept_slots is not None and saves:
        # One ring, and what the older ones of the kept saves have beyond it.
        kept = min(steps, kept_slots + (saves - 1) * between)
        disk.append(Part("saved replays", kept * trial.saved_slot_bytes, f"{kept:,} transitions, written once"))
    return disk


def _evaluations(config: Any, trial: Trial, tried: TriedEvaluation, training_s: float) -> Part:
    """What evaluations add to a training of so many seconds.

    They come one after the other, each in a process that wants a core while training goes on. As much of a core as the
    training does not leave them they take from it: all of its threads then wait for the one that has less, while
    workers that do not wait for each other lose that part only. At the end the run waits for those that are not over.
    """
    steps, every, each_s = int(config.steps), int(config.evaluate_every_steps), tried.seconds
    count = 1 + (steps - 1) // every
    lacking = min(1.0, max(0.0, trial.wanted_cores + 1 - trial.usable_cores))
    apart = trial.workers_bytes > 0 and not getattr(config, "alone", True)
    slowed_s = (count - 1) * each_s * (lacking / max(1.0, trial.wanted_cores) if apart else lacking)
    first_s = (training_s + slowed_s) * min(1.0, every / steps)
    waited_s = max(each_s, first_s + count * each_s - (training_s + slowed_s))
    if tried.game_steps is None:
        measured = f"{count:,} of at least {units.duration(each_s)}, when the one that was measured was not over"
    else:
        measured = f"{count:,} of {units.duration(each_s)}, as measured (games of {tried.game_steps:,.0f} steps)"
    beside = (
        "beside learning but for the end"
        if lacking == 0
        else f"learning wants {trial.wanted_cores:.1f} of {trial.usable_cores} cores too"
    )
    return Part("evaluations", slowed_s + waited_s, f"{measured}; {beside}")


def _steps_between_checkpoints(config: Any, steps_per_s: float) -> int:
    by_clock = config.checkpoint_every_minutes * 60 * steps_per_s or float("inf")
    return max(1, int(min(by_clock, config.checkpoint_every_steps or float("inf"), config.steps)))
