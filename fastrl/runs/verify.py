"""The proof on the user's own machine that stopping and going on changes nothing.

One run makes 2N steps. Another makes them too, is killed without warning after its checkpoint at N, and goes on from
there. Both must end with the same weights, optimiser, generators, replay and games, to the bit.
"""

from __future__ import annotations

import dataclasses
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from fastrl.engine.mujoco_tasks import task_ids
from fastrl.engine.recorded_envs import is_atari
from fastrl.runs.checkpoint import CheckpointStore
from fastrl.runs.child_run import ChildRun
from fastrl.runs.command_line import Trainer

_POLL_S = 0.02


def verify_resume(trainer: Trainer, config: Any, steps: int) -> int:
    """Prove it for this configuration; returns the exit code."""
    if steps < 1:
        raise ValueError(f"verify-resume: {steps} is outside [1, ...]: the steps after which the run is killed")
    if why := config.unrepeatable():
        raise ValueError(f"verify-resume: there is nothing to prove: {why}")
    if not config.steps_per_round:
        raise ValueError("verify-resume: rounds of whole episodes end nobody knows when; give rounds a length")
    if not is_atari(config.env) and config.env not in task_ids():
        raise ValueError(
            f"verify-resume: {config.env} is an env of Gymnasium, whose state cannot be saved, so a resumed run begins "
            "new episodes; only Atari games and the tasks of fastrl's MuJoCo pool go on bit by bit"
        )
    half = -(-steps // config.steps_per_round) * config.steps_per_round
    if half != steps:
        print(f"verify-resume: {steps} steps are no whole rounds of {config.steps_per_round} steps; taking {half}")
    # Where runs go there is room for a run; /tmp is memory on many machines.
    config.runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".verify-", dir=config.runs))
    try:
        shared = dataclasses.replace(
            config,
            steps=2 * half,
            runs=folder,
            checkpoint_every_minutes=0.0,
            checkpoint_replay=True,
            evaluate_every_steps=0,
            tensorboard=False,
        )
        print(f"one run of {2 * half:,} steps ...", flush=True)
        whole = _digest(trainer, dataclasses.replace(shared, name="whole"))
        print(f"another, killed after its checkpoint at {half:,} steps ...", flush=True)
        broken = dataclasses.replace(shared, name="broken", checkpoint_every_steps=half)
        _kill_after_checkpoint(trainer, broken, half)
        print(f"killed (SIGKILL) with its newest checkpoint at {half:,} steps; going on from there ...", flush=True)
        resumed = _digest(trainer, broken, resume=folder / "broken")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"  in one go:          {whole}\n  killed and resumed: {resumed}")
    same = whole == resumed
    print("equal: weights, optimiser, generators, replay and games agree to the bit" if same else "DIFFERENT")
    return 0 if same else 1


def _digest(trainer: Trainer, config: Any, resume: Path | None = None) -> str:
    with ChildRun(trainer, config, resume=resume, digest=True) as child:
        child.process.wait()
    _require_success(child, {0})
    return child.digest()


def _kill_after_checkpoint(trainer: Trainer, config: Any, steps: int) -> None:
    store = CheckpointStore(config.runs / config.name / "checkpoints")
    with ChildRun(trainer, config) as child:
        while not store.steps_saved() and child.process.poll() is None:
            time.sleep(_POLL_S)
    _require_success(child, {0, -signal.SIGKILL})
    if store.steps_saved()[:1] != [steps]:
        raise ValueError(
            f"verify-resume: the run was over before it could be killed at {steps} steps, which would prove nothing; "
            "give more steps"
        )


def _require_success(child: ChildRun, allowed: set[int]) -> None:
    if (code := child.process.returncode) not in allowed:
        raise ChildProcessError(f"verify-resume: a run ended with exit code {code}; it has said why")
