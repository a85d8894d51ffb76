"""Evaluation beside training: a snapshot of the weights on disk, a process that plays with it, a row when it is done.

What is evaluated, with which seeds, and which weights count as best depend on steps and seed alone, never on when a
process ends. A run that is resumed evaluates what it had not yet.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fastrl.engine.files import DamagedFile, read_json, write_json, write_private
from fastrl.runs import checkpoint, seeds
from fastrl.runs.checkpoint import CheckpointStore
from fastrl.runs.console import Console
from fastrl.runs.run_dir import RunDir
from fastrl.runs.workers import die_with

COLUMNS = (
    "frames", "steps", "updates", "wall_s",
    "episodes", "epsilon", "mean", "median", "std", "min", "max", "length_mean", "hns", "seconds",
)  # fmt: skip


class BackgroundEvaluation:
    """The evaluations of one run, one after the other in processes of their own."""

    def __init__(
        self,
        run: RunDir,
        store: CheckpointStore,
        episodes: int,
        epsilon: float,
        seed: int,
        console: Console,
        network: str = "",
    ) -> None:
        self.run, self._store, self._console, self._note = run, store, console, console.note
        self._network = network  # as the user named it: only a network of the user's own is imported by name
        self._order = {"episodes": episodes, "epsilon": epsilon, "seed": seed}
        self._snapshots = CheckpointStore(run.path / "evaluations", keep=1_000_000)
        self._process: subprocess.Popen[bytes] | None = None
        self._working_on: Path | None = None
        self._failed: set[Path] = set()
        self.rows: list[dict[str, Any]] = read_evaluations(run.evaluations_file)

    def resume(self, steps: int | None) -> None:
        """Forget what was evaluated after the checkpoint of ``steps``, which will come again; None: a new run."""
        if steps is None:
            return
        self.rows = [row for row in self.rows if row["steps"] <= steps]
        self._write_rows()
        for at in self._snapshots.steps_saved():
            if at > steps:
                self._forget(self._snapshots.path_of(at))
        try:
            best = self._store.load_best()
        except ValueError as error:
            self._note(f"the best weights so far are lost ({error}); the next best ones take their place")
            best = None
        if best is not None and best.steps > steps:
            self._note("the best weights so far were of later steps than this checkpoint; they are found again")
            checkpoint.forget(best.path)
        self.poll()

    def submit(
        self, counts: Mapping[str, float], tensors: Mapping[str, torch.Tensor], policy: Mapping[str, Any]
    ) -> None:
        """Have the policy's tensors evaluated. ``counts`` begins the row."""
        if any(row["steps"] == counts["steps"] for row in self.rows):
            return
        try:
            keep_snapshot(self._snapshots, counts, tensors, policy, self._order)
        except OSError as error:
            self._note(
                f"evaluation at {int(counts['steps']):,} steps is left out: its weights cannot be written ({error})"
            )
            return
        self.poll()

    @property
    def under_way(self) -> bool:
        """Whether a process evaluates now."""
        return self._process is not None

    def poll(self) -> None:
        """Take results that are there, and start the next evaluation."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            self._take_result(self._process.returncode)
        waiting = [
            path
            for steps in reversed(self._snapshots.steps_saved())
            if (path := self._snapshots.path_of(steps)) not in self._failed
        ]
        if waiting:
            self._working_on = waiting[0]
            try:
                self._process = start(waiting[0], self._network)
            except OSError as error:
                self._note(
                    f"evaluation {waiting[0].stem} cannot be started ({error}); it is done when the run is resumed"
                )
                self._failed.add(waiting[0])

    def wait(self, stop: Callable[[], bool]) -> bool:
        """Until all that was submitted is evaluated, which it returns; or until ``stop``."""
        while True:
            self.poll()
            if self._process is None:
                return True
            if stop():
                return False
            time.sleep(0.05)

    def close(self) -> None:
        """End what is under way. It is done again when the run is resumed."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _take_result(self, code: int) -> None:
        assert self._process is not None
        assert self._working_on is not None
        _, said = self._process.communicate()
        self._process, path = None, self._working_on
        try:
            if code != 0:
                raise DamagedFile(last_words(said, code))
            row = read_json(result_of(path))
        except DamagedFile as error:
            self._note(f"evaluation {path.stem} failed: {error}")
            self._failed.add(path)
            return
        self.rows.append(row)
        self.rows.sort(key=lambda r: r["steps"])
        self._write_rows()
        best = max(self.rows, key=lambda r: (r["mean"], -r["steps"]))  # the earlier one of equals
        self._console.evaluated(row, best)
        hns = "" if row["hns"] is None else f", human-normalised {row['hns']:.2f}"
        self._note(
            f"evaluation at {int(row['steps']):,} steps: mean return {row['mean']:.2f} of {int(row['episodes'])} games "
            f"({row['min']:.0f} to {row['max']:.0f}){hns}; best {best['mean']:.2f} at {int(best['steps']):,}"
        )
        if best is row:
            try:
                snapshot = checkpoint.read(path)
                self._store.save_best(
                    snapshot.steps, snapshot.tensors, {"evaluation": row, "policy": snapshot.state["policy"]}
                )
            except (OSError, DamagedFile) as error:
                self._note(f"these best weights cannot be kept ({error}); training goes on")
        self._forget(path)

    @staticmethod
    def _forget(path: Path) -> None:
        checkpoint.forget(path)
        result_of(path).unlink(missing_ok=True)

    def _write_rows(self) -> None:
        text = [",".join(COLUMNS)]
        for row in self.rows:
            text.append(",".join("" if row[name] is None else repr(row[name]) for name in COLUMNS))
        try:
            write_private(self.run.evaluations_file, ("\n".join(text) + "\n").encode())
        except OSError as error:
            self._note(f"evaluations.csv cannot be written ({error}); tried again with the next one")


def keep_snapshot(
    store: CheckpointStore,
    counts: Mapping[str, float],
    tensors: Mapping[str, torch.Tensor],
    policy: Mapping[str, Any],
    order: Mapping[str, Any],
) -> Path:
    """Write down what is to be evaluated, for :func:`start`.

    Args:
        store: of snapshots.
        counts: of the run at that moment; they begin the row.
        tensors: the policy's are among them.
        policy: what it is.
        order: how: ``episodes``, ``epsilon`` and ``seed``.
    """
    mine = {name: tensor for name, tensor in tensors.items() if name.startswith(policy["prefix"])}
    return store.save(int(counts["steps"]), mine, {"counts": dict(counts), "policy": dict(policy), **order})


def start(snapshot: Path, network: str) -> subprocess.Popen[bytes]:
    """A process that evaluates a snapshot, and leaves the row in :func:`result_of` it.

    Args:
        snapshot: that was kept.
        network: as the user named it.
    """
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(snapshot), str(os.getpid()), network],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is the affair of who starts it
    )


def result_of(snapshot: Path) -> Path:
    """Where the row is, once there is one."""
    return snapshot.with_suffix(".result")


def last_words(said: bytes, code: int) -> str:
    """Why a process ended that was not to."""
    return said.decode(errors="replace").strip().splitlines()[-1] if said.strip() else f"exit code {code}"


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """The rows of an evaluations.csv, in order; none if there is no such file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = [
            {name: json.loads(text) if text else None for name, text in row.items()} for row in csv.DictReader(file)
        ]
    return sorted(rows, key=lambda row: row["steps"])


def _work(path: Path, network: str) -> None:
    """Evaluate one snapshot and write the result beside it."""
    from fastrl.learn.networks import named_factory
    from fastrl.learn.policies import Policy
    from fastrl.runs.evaluation import epsilon_greedy, evaluate, normalised

    began = time.perf_counter()
    torch.set_num_threads(1)
    os.nice(10)  # learning comes first
    snapshot = checkpoint.read(path)
    state = snapshot.state
    policy = Policy(state["policy"], snapshot.tensors, factory=named_factory(network))
    seed = seeds.whole(state["seed"], f"evaluation at {snapshot.steps}")
    env = state["policy"]["env"]
    played = evaluate(
        epsilon_greedy(policy, state["epsilon"], seed),
        env,
        state["policy"]["evaluation_rules"],
        episodes=state["episodes"],
        seed=seed,
        threads=1,
    )
    summary = played.summary()
    row = {
        **state["counts"],
        "epsilon": state["epsilon"],
        **summary,
        "hns": normalised(env, summary["mean"]),
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_json(result_of(path), row)


if __name__ == "__main__":
    die_with(int(sys.argv[2]))
    _work(Path(sys.argv[1]), sys.argv[3])
