"""A training in a process of its own, for those who watch it, end it, or compare it with another."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from fastrl.engine.files import write_json
from fastrl.runs.command_line import Trainer, from_stored
from fastrl.runs.run_dir import as_json
from fastrl.runs.stop import exits_in_order
from fastrl.runs.workers import die_with

DIGEST_FILE, DEVICE_FILE = "digest.json", "device.json"


class ChildRun:
    """Trains with ``config``, which names the run, while it is entered; it and what it started end with the block.

    Args:
        trainer: the algorithm.
        config: of the run.
        resume: go on with this run.
        digest: leave a hash of all that decides how the run would go on.
        device_use: leave what it took of the GPU that it learned on.
        output: where its words go; None: nowhere, but for errors.
    """

    def __init__(
        self,
        trainer: Trainer,
        config: Any,
        *,
        resume: Path | None = None,
        digest: bool = False,
        device_use: bool = False,
        output: IO[bytes] | None = None,
    ) -> None:
        self.path: Path = config.runs / config.name
        self._signals = exits_in_order()
        order = {"config": as_json(config), "resume": None if resume is None else str(resume), "digest": digest}
        order["device_use"] = device_use
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, f"fastrl.{trainer.algorithm}", json.dumps(order), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=output or subprocess.DEVNULL,
            stderr=output,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        # Who is told to end ends it first, and whatever it keeps for it.
        self._signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signals.__exit__(None, None, None)
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def digest(self) -> str:
        """The hash, of a run that has ended."""
        found: str = json.loads((self.path / DIGEST_FILE).read_text())
        return found


def train(module: str, order: dict[str, Any]) -> None:
    """What the process does."""
    from fastrl.runs.device_memory import DeviceWatch
    from fastrl.runs.options import learns_on_gpu
    from fastrl.runs.session import Session

    trainer: Trainer = importlib.import_module(module).TRAINER
    Session.digest_at_end = order["digest"]
    config = from_stored(trainer.config_class, order["config"])
    if order.get("device_use") and learns_on_gpu(config):
        watch = DeviceWatch()
        Session.at_end = staticmethod(
            lambda: write_json(config.runs / config.name / DEVICE_FILE, dataclasses.asdict(watch.look()))
        )
    session = trainer.train(
        config,
        resume_run=None if order["resume"] is None else Path(order["resume"]),
    )
    if order["digest"]:
        (session.run.path / DIGEST_FILE).write_text(json.dumps(session.final_digest))
    sys.exit(session.exit_code)


if __name__ == "__main__":
    die_with(int(sys.argv[3]))
    train(sys.argv[1], json.loads(sys.argv[2]))
