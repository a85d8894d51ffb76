"""Worker processes of an asynchronous trainer: started, heard, paused for a checkpoint, replaced when one dies.

A worker is a fresh Python that imports the trainer's module and calls its ``work``. They talk in lines of JSON over a
socket; what is hot goes through shared memory instead. A worker never outlives its trainer: the kernel ends it.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.engine.shared_memory import SharedMemory, SharedMemoryHandle

RUN, PAUSE, STOP = 0, 1, 2
_STOP_WITHIN_S = 4.0
_PAUSE_WITHIN_S = 60.0
# A worker that dies so soon after its start, so often in a row, will not get better.
_SOON_S = 5.0
_SOON_DEATHS = 3


class WorkerFailed(RuntimeError):
    """A worker raised an error: which one, and what it said."""


class Board:
    """What all workers and the trainer see at any moment: a wish, and how far each worker is.

    Args:
        workers: how many.
        sums: how many numbers each worker adds up for the log.
    """

    def __init__(self, workers: int, sums: int, _memory: SharedMemory | None = None) -> None:
        self.workers, self.sums_width = workers, sums
        words = 8 * (-(-(1 + sums) // 8))
        self._memory = _memory or SharedMemory.create(64 + 8 * words * workers)
        self._wish = self._memory.array(0, (1,), np.int64)
        rows = self._memory.array(64, (workers, words), np.float64)
        self.steps: npt.NDArray[np.int64] = rows[:, :1].view(np.int64)[:, 0]  # taken so far, by worker
        self.sums: npt.NDArray[np.float64] = rows[:, 1 : 1 + sums]

    def handle(self) -> SharedMemoryHandle:
        """For workers."""
        return self._memory.handle()

    @classmethod
    def attach(cls, handle: SharedMemoryHandle, workers: int, sums: int) -> Board:
        """The trainer's board."""
        return cls(workers, sums, SharedMemory.attach(handle))

    @property
    def wish(self) -> int:
        """RUN, PAUSE or STOP."""
        return int(self._wish[0])

    @wish.setter
    def wish(self, value: int) -> None:
        self._wish[0] = value


class Line:
    """JSON messages over a socket."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._buffer = b""

    def send(self, message: dict[str, Any]) -> None:
        """Send one; blocks while the other side does not read."""
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def received(self, timeout_s: float) -> Iterator[dict[str, Any]]:
        """Whole messages that are there within the time. Ends for good when the other side has gone."""
        ready, _, _ = select.select([self.socket], [], [], timeout_s)
        while ready:
            try:
                part = self.socket.recv(1 << 20)
            except OSError:
                part = b""
            if not part:
                raise EOFError
            self._buffer += part
            *whole, self._buffer = self._buffer.split(b"\n")
            for line in whole:
                yield json.loads(line)
            ready, _, _ = select.select([self.socket], [], [], 0)


class _Worker:
    def __init__(self, index: int, life: int, process: subprocess.Popen[bytes], line: Line) -> None:
        self.index, self.life, self.process, self.line = index, life, process, line
        self.began_s = time.monotonic()
        self.state: dict[str, Any] | None = None  # told when it pauses


class WorkerGroup:
    """All workers of one trainer.

    Args:
        module: that has ``work(order, board, line)``, such as ``fastrl.a3c``.
        orders: what each worker is told when it starts; JSON. The group adds its index and which life it is.
        board: shared with them.
        heard: is given every message that is not about life and death, with the worker's index.
        died: is told of a worker that was lost, before it is replaced.
        note: tells the user.
    """

    def __init__(
        self,
        module: str,
        orders: list[dict[str, Any]],
        board: Board,
        *,
        heard: Callable[[int, dict[str, Any]], None],
        died: Callable[[int], None],
        note: Callable[[str], None],
    ) -> None:
        self._module, self._orders, self._board = module, orders, board
        self._heard, self._died, self._note = heard, died, note
        self._soon_deaths = 0
        self.deaths = 0
        self._workers = [self._start(index, 0) for index in range(len(orders))]

    def _start(self, index: int, life: int) -> _Worker:
        ours, theirs = socket.socketpair()
        order = {
            **self._orders[index],
            "worker": index,
            "life": life,
            "board": vars(self._board.handle()),
            "workers": self._board.workers,
            "sums": self._board.sums_width,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "fastrl.runs.workers", self._module, str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is the trainer's affair
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        theirs.close()
        line = Line(ours)
        line.send(order)
        return _Worker(index, life, process, line)

    @property
    def pids(self) -> list[int]:
        """Of the workers, in order."""
        return [worker.process.pid for worker in self._workers]

    def poll(self, timeout_s: float) -> None:
        """Hear what workers say within the time, and replace the dead.

        Raises:
            WorkerFailed: one raised an error, or they die as soon as they live.
        """
        ends = {worker.line.socket: worker for worker in self._workers}
        ready, _, _ = select.select(list(ends), [], [], timeout_s)
        for end in ready:
            self._hear(ends[end])

    def _hear(self, worker: _Worker) -> None:
        try:
            for message in worker.line.received(0):
                if "error" in message:
                    raise WorkerFailed(f"worker {worker.index}: {message['error']}")
                if "paused" in message:
                    worker.state = message["paused"]
                else:
                    self._heard(worker.index, message)
        except EOFError:
            self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        worker.process.wait()
        worker.line.socket.close()
        if self._board.wish == STOP:
            return
        self.deaths += 1
        soon = time.monotonic() - worker.began_s < _SOON_S
        self._soon_deaths = self._soon_deaths + 1 if soon else 0
        code = worker.process.returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if self._soon_deaths >= _SOON_DEATHS:
            raise WorkerFailed(
                f"worker {worker.index} ended ({how}) within {_SOON_S:.0f} s of its start, again and again"
            )
        self._note(f"worker {worker.index} ended ({how}); another takes its place, with new games")
        self._died(worker.index)
        self._orders[worker.index] = {**self._orders[worker.index], "state": None}
        self._workers[worker.index] = self._start(worker.index, worker.life + 1)

    def pause(self) -> list[dict[str, Any]]:
        """Let every worker come to the end of a round and tell its state; they wait until :meth:`go_on`."""
        for worker in self._workers:
            worker.state = None
        self._board.wish = PAUSE
        until = time.monotonic() + _PAUSE_WITHIN_S
        while any(worker.state is None for worker in self._workers):
            if time.monotonic() > until:
                silent = [worker.index for worker in self._workers if worker.state is None]
                raise WorkerFailed(f"workers {silent} did not pause within {_PAUSE_WITHIN_S:.0f} s")
            self.poll(0.1)
        return [worker.state for worker in self._workers if worker.state is not None]

    def go_on(self) -> None:
        """End a pause."""
        self._board.wish = RUN
        for worker in self._workers:
            worker.line.send({"go_on": True})

    def stop(self) -> None:
        """End all workers."""
        self._board.wish = STOP
        until = time.monotonic() + _STOP_WITHIN_S
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.line.send({"stop": True})
        for worker in self._workers:
            try:
                worker.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.line.socket.close()


class Boundary:
    """A worker's side: called at the end of every round."""

    def __init__(self, board: Board, line: Line) -> None:
        self._board, self._line = board, line

    def go_on(self, state: Callable[[], dict[str, Any]]) -> bool:
        """Whether there is another round. Where the trainer wants a pause, tell it ``state`` and wait."""
        wish = self._board.wish
        if wish == RUN:
            return True
        if wish == STOP:
            return False
        self._line.send({"paused": state()})
        while True:
            try:
                for message in self._line.received(1.0):
                    return "go_on" in message
            except EOFError:
                return False


def as_text(data: bytes) -> str:
    """Bytes in JSON."""
    return base64.b64encode(data).decode()


def from_text(text: str) -> bytes:
    """What :func:`as_text` wrote."""
    return base64.b64decode(text)


def die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, however it does."""
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit("the trainer is gone")


def _main() -> None:
    module, descriptor, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    die_with(parent)
    line = Line(socket.socket(fileno=descriptor))
    try:
        order: dict[str, Any] = {}
        while not order:
            order = next(line.received(1.0), {})
        board = Board.attach(SharedMemoryHandle(**order["board"]), order["workers"], order["sums"])
        importlib.import_module(module).work(order, board, line)
    except (EOFError, BrokenPipeError):
        pass  # the trainer has gone
    except Exception as error:
        line.send({"error": f"{type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    _main()
