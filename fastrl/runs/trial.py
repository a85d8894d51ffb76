"""A few seconds of a run that is planned, with a small replay: what it takes of memory, disk and time."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.engine.budget import usable_cores
from fastrl.engine.files import read_json
from fastrl.engine.replay_store import read_manifest
from fastrl.engine.ring_sizes import ring_bytes
from fastrl.runs import background_evaluation
from fastrl.runs.checkpoint import Checkpoint, CheckpointStore, read
from fastrl.runs.child_run import DEVICE_FILE, ChildRun
from fastrl.runs.command_line import Trainer
from fastrl.runs.core_waits import CoreUse
from fastrl.runs.device_memory import DeviceUse
from fastrl.runs.options import learns_on_gpu
from fastrl.runs.process_memory import PeakMemory
from fastrl.runs.stop import exits_in_order
from fastrl.runs.tables import read_columns

_POLL_S = 0.1
_START_WITHIN_S, _ROWS_WITHIN_S, _END_WITHIN_S = 200.0, 600.0, 60.0
# A row of metrics.csv takes a millisecond or two.
_LOG_EVERY_STEPS, _LOG_EVERY_STEPS_ON_GPU = 250, 2_500
# The first rows of a phase also have what is done once, such as torch's choice of its convolutions.
_LEAVE_OUT_ROWS = 2
_LEAST_ROWS = 5
# Of the small replay: more than a lane needs besides its transitions, and enough for a warm-up that can be measured.
_SLOTS, _TRANSITIONS = 512, 4096
_TERMINATED = 128 + signal.SIGTERM
_EVALUATE_FOR_S = 60.0


class TrialFailed(RuntimeError):
    """The run that was tried did not come to learning: its exit code, and what it said."""


@dataclass(frozen=True)
class TriedEvaluation:
    """What one evaluation took, of the policy that the trial came to, while nothing was trained."""

    snapshot_bytes: int  # on disk, of what was evaluated: the policy's weights
    memory_bytes: int  # without libraries, which the trainer has too
    seconds: float  # from the start of its process to the end, or until it was ended
    game_steps: float | None  # mean; None: it was not over by then


@dataclass(frozen=True)
class Trial:
    """What was measured."""

    start_s: float  # until the first row, and from the last one to its end
    warm_up_steps_per_s: float | None  # before the first update; None: there was no such phase
    steps_per_s: float  # while learning
    updates_per_s: float  # meanwhile
    frames_per_step: float
    shares: dict[str, float]  # of the trainer's wall time, by stage, meanwhile
    trainer_bytes: int  # the most memory that its process took
    replay_bytes: int  # of them, the small replay's
    workers_bytes: int  # that its other processes took together
    evaluation: TriedEvaluation | None  # None: there are none
    wanted_cores: float  # threads that ran or waited for a core, on average while learning
    usable_cores: int  # that there were
    others_cores: float  # that other programs took of them meanwhile; 0 where the kernel does not tell
    replay_shape: dict[str, int] | None  # None: it has none
    saved_slot_bytes: int  # of a transition on disk
    checkpoint_bytes: int  # without the replay
    networks_bytes: int  # of its tensors: weights, of copies such as targets too
    optimiser_bytes: int  # of its tensors: what the optimiser remembers
    device: DeviceUse | None  # None: it learned on the CPU
    mirrored: bool  # whether the device had the replay's observations too
    row_bytes: float  # of metrics.csv and TensorBoard, each row


def small_replay(config: Any) -> dict[str, int]:
    """A replay for a trial, and a warm-up that fills a part of it."""
    slots = max(_SLOTS, 4 * getattr(config, "n_step", 1))
    capacity = max(slots * config.num_envs, _TRANSITIONS, 2 * config.batch)
    return {"replay_capacity": capacity, "warm_up_steps": min(config.warm_up_steps, capacity // 2)}


def _log_every_steps(config: Any) -> int:
    every = _LOG_EVERY_STEPS_ON_GPU if learns_on_gpu(config) else _LOG_EVERY_STEPS
    steps: int = max(1, min(every, config.steps // 20))
    return steps


def learning_for_s(config: Any, seconds: float, steps_per_s: float) -> float:
    """About how long a trial of ``seconds`` learns, that takes so many steps a second: until it has rows enough."""
    row_s = _log_every_steps(config) / steps_per_s
    return max(seconds, min(_LEAST_ROWS * row_s, max(10 * seconds, 2 * row_s)))


def try_out(trainer: Trainer, config: Any, seconds: float, rows_within_s: float = _ROWS_WITHIN_S) -> Trial:
    """Train for ``seconds`` with a small replay, in a process and a directory of its own.

    Args:
        trainer: the algorithm.
        config: the run that is planned.
        seconds: of learning; the warm-up before it is shortened.
        rows_within_s: of learning; what has not made two rows by then has failed.
    """
    with exits_in_order():
        return _tried_out(trainer, config, seconds, rows_within_s)


def _tried_out(trainer: Trainer, config: Any, seconds: float, rows_within_s: float) -> Trial:
    was_there = config.runs.exists()
    config.runs.mkdir(parents=True, exist_ok=True)  # where runs go there is room for one
    folder = Path(tempfile.mkdtemp(prefix=".plan-", dir=config.runs))
    try:
        tried = dataclasses.replace(
            config,
            **trainer.tried_as(config),
            runs=folder,
            name="trial",
            log_every_steps=_log_every_steps(config),
            checkpoint_every_minutes=0.0,
            checkpoint_replay=True,  # which tells its shape
            histograms=False,
            checkpoint_every_steps=None,
            evaluate_every_steps=0,
        )
        return _measured(trainer, tried, seconds, rows_within_s, evaluates=config.evaluate_every_steps > 0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not was_there:
            with contextlib.suppress(OSError):  # somebody else's runs are there by now
                config.runs.rmdir()


def _measured(trainer: Trainer, config: Any, seconds: float, rows_within_s: float, *, evaluates: bool) -> Trial:
    path = config.runs / config.name
    said = config.runs / "said.txt"
    began = time.perf_counter()
    with open(said, "wb") as output, ChildRun(trainer, config, device_use=True, output=output) as child:
        process, peak = child.process, PeakMemory(child.process.pid)
        learning_s = told_s = math.inf  # when it began to learn, and was told to end
        use_before = use = None  # of cores, by then
        while process.poll() is None:
            time.sleep(_POLL_S)
            peak.look()
            now = time.perf_counter()
            updated = int((_metrics(path)["updates"] > 0).sum())
            if updated and learning_s == math.inf:
                learning_s, use_before = now, CoreUse.of(process.pid)
            if learning_s == math.inf and now - began > _START_WITHIN_S:
                raise TrialFailed(f"the trial made no update within {_START_WITHIN_S:.0f} s; is the machine busy?")
            if now - told_s > _END_WITHIN_S:
                raise TrialFailed(f"the trial was told to end and did not within {_END_WITHIN_S:.0f} s")
            enough = updated >= _LEAST_ROWS or (updated >= 2 and now - learning_s > 10 * seconds)
            if told_s == math.inf and now - learning_s > seconds and enough:
                use = CoreUse.of(process.pid)
                process.send_signal(signal.SIGTERM)  # it saves, and ends
                told_s = now
            elif told_s == math.inf and now - learning_s > rows_within_s:
                few = 2 * config.log_every_steps
                raise TrialFailed(f"the trial made fewer than {few} steps in {rows_within_s:.0f} s of learning")
        lived_s = time.perf_counter() - began
    cores = usable_cores()
    # Of one that ended by itself, or where the kernel does not tell, the worst is assumed: it leaves none.
    wanted_cores = float(cores)
    others_cores = 0.0
    if use is not None and use_before is not None:
        wanted_cores = max(0.0, use.wanted_s - use_before.wanted_s) / (told_s - learning_s)
        if use.busy_s is not None and use_before.busy_s is not None:
            others_s = (use.busy_s - use_before.busy_s) - (use.ran_s - use_before.ran_s)
            others_cores = max(0.0, others_s) / (told_s - learning_s)
    rows = _metrics(path)
    warm_up, learning = (np.flatnonzero(which) for which in (rows["updates"] == 0, rows["updates"] > 0))
    store = CheckpointStore(path / "checkpoints")
    # One that had come to its end just then dies of the signal, its work done.
    if process.returncode not in (0, _TERMINATED, -signal.SIGTERM) or not store.steps_saved():
        words = said.read_text(errors="replace").strip().splitlines()
        raise TrialFailed(f"the trial ended with exit code {process.returncode}: {words[-1] if words else 'no word'}")
    if len(learning) < 2:
        raise TrialFailed(f"{config.steps:,} steps are over before there is anything to measure; give more --steps")
    saved = read(store.path_of(store.steps_saved()[0]))
    manifest = read_manifest(store.replay_save(saved)) if saved.state["replay"] else None
    tensor_bytes = {name: tensor.numel() * tensor.element_size() for name, tensor in saved.tensors.items()}
    games_bytes = sum(size for name, size in tensor_bytes.items() if name.startswith("env."))
    optimiser_bytes = sum(size for name, size in tensor_bytes.items() if _is_optimisers(name))
    checkpoint_bytes = sum(file.stat().st_size for file in store.directory.glob("ckpt-*"))
    logged = [path / "metrics.csv", *(path / "tensorboard").glob("*")]
    settled = learning[min(_LEAVE_OUT_ROWS, len(learning) - 2) :]
    return Trial(
        start_s=lived_s - float(rows["wall_s"][-1] - rows["wall_s"][0]),
        warm_up_steps_per_s=_rate(rows, "steps", warm_up) if len(warm_up) > 1 else None,
        steps_per_s=_rate(rows, "steps", settled),
        updates_per_s=_rate(rows, "updates", settled),
        frames_per_step=float(rows["frames"][-1] / rows["steps"][-1]),
        shares={
            name.removeprefix("share/"): float(np.nan_to_num(rows[name][settled]).mean())
            for name in rows
            if name.startswith("share/")
        },
        trainer_bytes=peak.own_bytes,
        replay_bytes=0 if manifest is None else ring_bytes(manifest["shape"], manifest["shape"]["slots"]),
        workers_bytes=peak.descendants_bytes,
        evaluation=_tried_evaluation(path, config, saved) if evaluates else None,
        wanted_cores=wanted_cores,
        usable_cores=cores,
        others_cores=others_cores,
        replay_shape=manifest["shape"] if manifest else None,
        saved_slot_bytes=8 * manifest["slot_words"] if manifest else 0,
        checkpoint_bytes=checkpoint_bytes,
        networks_bytes=sum(tensor_bytes.values()) - games_bytes - optimiser_bytes,
        optimiser_bytes=optimiser_bytes,
        device=DeviceUse(**read_json(path / DEVICE_FILE)) if learns_on_gpu(config) else None,
        mirrored=learns_on_gpu(config) and getattr(config, "replay_device", "cpu") != "cpu",  # so small a one has room
        row_bytes=sum(file.stat().st_size for file in logged) / len(rows["steps"]),
    )


def _is_optimisers(tensor: str) -> bool:
    """Whether a tensor of a checkpoint is what an optimiser remembers."""
    return "optimiser" in tensor or tensor == "shared.squares"


def _tried_evaluation(run: Path, config: Any, saved: Checkpoint) -> TriedEvaluation:
    """Evaluate a checkpoint's policy just as the run would."""
    order = {
        "episodes": config.evaluation_episodes,
        "epsilon": config.evaluation_epsilon,
        "seed": config.seed,
    }
    store = CheckpointStore(run / "evaluations")
    snapshot = background_evaluation.keep_snapshot(
        store, {"steps": saved.steps}, saved.tensors, saved.state["policy"], order
    )
    began = time.perf_counter()
    process = background_evaluation.start(snapshot, getattr(config, "network", ""))
    peak = PeakMemory(process.pid, files=False)
    try:
        while process.poll() is None and time.perf_counter() - began < _EVALUATE_FOR_S:
            peak.look()
            time.sleep(_POLL_S)
        seconds = time.perf_counter() - began
    finally:
        over = process.poll() is not None
        process.kill()
        _, words = process.communicate()
    if over and process.returncode != 0:
        raise TrialFailed(f"an evaluation failed: {background_evaluation.last_words(words, process.returncode)}")
    game_steps = float(read_json(background_evaluation.result_of(snapshot))["length_mean"]) if over else None
    snapshot_bytes = sum(file.stat().st_size for file in store.directory.glob("ckpt-*") if file.suffix != ".result")
    return TriedEvaluation(snapshot_bytes, peak.own_bytes, seconds, game_steps)


def _metrics(run: Path) -> dict[str, npt.NDArray[np.float64]]:
    """The whole rows of its metrics.csv so far."""
    with contextlib.suppress(OSError, ValueError):  # it is not there yet, or its first line is not
        return read_columns(run / "metrics.csv")
    return {"updates": np.empty(0)}


def _rate(rows: dict[str, npt.NDArray[np.float64]], of: str, at: npt.NDArray[np.int64]) -> float:
    """How many a second, from the first of these rows to the last."""
    first, last = at[0], at[-1]
    seconds = max(rows["wall_s"][last] - rows["wall_s"][first], 1e-3)  # which they are rounded to
    return float((rows[of][last] - rows[of][first]) / seconds)
