"""A process that has imported everything and forks children on demand, so that a test can kill a dozen trainings.

A training of its own needs seconds for its imports. The nursery has one thread and does nothing but fork, so a child is
what a fresh process would be. Children lead a process group of their own, write into a file, and end as the interpreter
ends. `python tests/nursery.py` serves orders on its standard input, a line of JSON each.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Child:
    """One forked process."""

    def __init__(self, nursery: Nursery, pid: int, output: Path) -> None:
        self.pid, self.output, self._nursery = pid, output, nursery

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Its exit code, negative for a signal as subprocess has it."""
        end = time.monotonic() + timeout_s
        while (code := self._nursery.order(code_of=self.pid)) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.pid} is alive after {timeout_s} s\n{self.said()}")
            time.sleep(0.005)
        return int(code)

    def said(self) -> str:
        """What it has written so far."""
        return self.output.read_text() if self.output.exists() else ""

    def processes(self) -> list[int]:
        """Those that are left of its group."""
        found = subprocess.run(["pgrep", "-g", str(self.pid)], capture_output=True, text=True, check=False)
        return [int(line) for line in found.stdout.split()]


class Nursery:
    """The server, from the side of who orders; threads may share it."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **THREADS, "PYTHONPATH": f"{ROOT}:{ROOT}/tests:{os.environ.get('PYTHONPATH', '')}"},
        )

    def order(self, **what: Any) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with self._turn:
            self._server.stdin.write(json.dumps(what) + "\n")
            self._server.stdin.flush()
            return json.loads(self._server.stdout.readline())

    def start(self, call: str, *arguments: Any, output: Path) -> Child:
        """Fork a child that calls ``module:function``."""
        return Child(self, self.order(call=call, arguments=arguments, output=str(output)), output)

    def close(self) -> None:
        self._server.communicate()


def _child(call: str, arguments: list[Any], output: str) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no training outlives tests that are killed
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number in (1, 2):
        os.dup2(file, number)
    os.dup2(nothing, 0)
    # Whoever started the tests in the background has them, and so this, ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module, _, function = call.partition(":")
    getattr(importlib.import_module(module), function)(*arguments)


def train(arguments: list[str]) -> None:
    """What `fastrl dqn` does."""
    from fastrl import dqn
    from fastrl.runs import command_line

    sys.argv = ["fastrl", *arguments]
    command_line.main(dqn.TRAINER, arguments)


def _serve() -> None:
    import torch
    import tyro  # noqa: F401  (so that children need not)

    import fastrl.dqn  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        answer: Any
        if "call" in order:
            sys.stdout.flush()
            answer = os.fork()
            if answer == 0:
                try:
                    _child(order["call"], order["arguments"], order["output"])
                except SystemExit:
                    raise
                except BaseException:
                    traceback.print_exc()
                    sys.exit(99)
                sys.exit(0)
        else:
            done, status = os.waitpid(order["code_of"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if done else None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
