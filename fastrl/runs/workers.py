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
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.engine.shared_memory import SharedMemory, SharedMemoryHandle
from fastrl.runs.process_memory import give_back_memory

RUN, PAUSE = 0, 1
_SEND_WITHIN_S = 60.0  # a worker reads its order once Python has started, which takes long on a busy machine
_EXIT_WITHIN_S = 1.0
# Workers that die so often before their first round, in one place or while nobody gets on, will not get better.
_FRUITLESS_DEATHS = 5
# Nor will those that live so shortly so often in a row in one place, whatever they do meanwhile.
_SHORT_LIVES, _SHORT_LIFE_S = 20, 60.0


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
        """RUN or PAUSE."""
        return int(self._wish[0])

    @wish.setter
    def wish(self, value: int) -> None:
        self._wish[0] = value

    def total_steps(self) -> int:
        """Taken by all."""
        return int(self.steps.sum())


class Line:
    """JSON messages over a socket."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._buffer = b""

    def send(self, message: dict[str, Any]) -> None:
        """Send one; blocks while the other side does not read."""
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def received(self, timeout_s: float) -> Iterator[dict[str, Any]]:
        """Whole messages that are there within the time. Ends for good when the other side has gone.

        Whoever takes only some of them gets the others from the next call.
        """
        yield from self._whole()
        while select.select([self.socket], [], [], timeout_s)[0]:
            try:
                part = self.socket.recv(1 << 20)
            except OSError:
                part = b""
            if not part:
                raise EOFError
            self._buffer += part
            yield from self._whole()
            timeout_s = 0

    def _whole(self) -> Iterator[dict[str, Any]]:
        while (end := self._buffer.find(b"\n")) >= 0:
            line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
            yield json.loads(line)


class _Worker:
    def __init__(self, index: int, life: int, process: subprocess.Popen[bytes], line: Line) -> None:
        self.index, self.life, self.process, self.line = index, life, process, line
        self.steps_before = 0  # of those that had its place
        self.began_s = time.monotonic()
        self.state: dict[str, Any] | None = None  # told when it pauses


class WorkerGroup:
    """All workers of one trainer.

    Args:
        module: that has ``work(order, board, line)``, such as ``fastrl.a3c``.
        orders: what each worker is told when it starts; JSON. ``life`` is how many came before it in its place, and
            ``state`` what it goes on from; the group adds its index.
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
        self._fruitless = 0  # early deaths, in any place, since the last step of anybody
        self._fruitless_here = [0] * len(orders)  # in a row in each place
        self._short_lives_here = [0] * len(orders)  # in a row in each place
        self._steps_at_death = -1
        self.deaths = 0
        self._workers: list[_Worker] = []
        try:
            for index in range(len(orders)):
                self._workers.append(self._start(index))
            for worker in self._workers:  # once all of them are on their way: a long order waits for its reader
                self._tell_order(worker.index)
        except BaseException:
            self.stop()
            raise

    def _start(self, index: int) -> _Worker:
        ours, theirs = socket.socketpair()
        ours.settimeout(_SEND_WITHIN_S)
        process = subprocess.Popen(
            [sys.executable, "-m", "fastrl.runs.workers", self._module, str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is the trainer's affair
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        theirs.close()
        worker = _Worker(index, int(self._orders[index]["life"]), process, Line(ours))
        worker.steps_before = int(self._board.steps[index])
        return worker

    def _tell_order(self, index: int) -> None:
        order = {
            **self._orders[index],
            "worker": index,
            "board": vars(self._board.handle()),
            "workers": self._board.workers,
            "sums": self._board.sums_width,
        }
        self.tell(index, order)

    @property
    def pids(self) -> list[int]:
        """Of the workers, in order."""
        return [worker.process.pid for worker in self._workers]

    def tell(self, index: int, message: dict[str, Any]) -> None:
        """Send a message to one worker. To one that has just died it is lost, which the next poll finds.

        One that does not read within a minute has got a part of it, with which nobody could go on: it is ended.
        """
        try:
            self._workers[index].line.send(message)
        except TimeoutError:
            self._note(f"worker {index} did not listen within {_SEND_WITHIN_S:g} s")
            self.give_up(index)
        except OSError:
            pass

    def give_up(self, index: int) -> None:
        """End one worker; the next poll replaces it."""
        self._workers[index].process.kill()

    def poll(self, timeout_s: float) -> None:
        """Hear what workers say within the time, and replace the dead.

        Raises:
            WorkerFailed: one raised an error, or they die again and again before they have done anything.
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
                elif "note" in message:
                    self._note(f"worker {worker.index}: {message['note']}")
                else:
                    self._heard(worker.index, message)
        except EOFError:
            self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        index = worker.index
        _end(worker, _EXIT_WITHIN_S)
        self._died(index)
        self.deaths += 1
        code = worker.process.returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        fruitless = int(self._board.steps[index]) == worker.steps_before
        steps = self._board.total_steps()
        self._fruitless = self._fruitless + fruitless if steps == self._steps_at_death else int(fruitless)
        self._fruitless_here[index] = self._fruitless_here[index] + 1 if fruitless else 0
        self._steps_at_death = steps
        if max(self._fruitless, self._fruitless_here[index]) >= _FRUITLESS_DEATHS:
            raise WorkerFailed(
                f"worker {index} ended ({how}) before its first round, as did {_FRUITLESS_DEATHS - 1} before it in a "
                f"row; if memory is short, use fewer processes"
            )
        short = time.monotonic() - worker.began_s < _SHORT_LIFE_S
        self._short_lives_here[index] = self._short_lives_here[index] + 1 if short else 0
        if self._short_lives_here[index] >= _SHORT_LIVES:
            raise WorkerFailed(
                f"worker {index} ended ({how}) within {_SHORT_LIFE_S:g} s of its beginning, as did {_SHORT_LIVES - 1} "
                f"before it in a row; mend what ends them (memory, as a rule), then go on with --resume"
            )
        self._note(f"worker {index} ended ({how}); another takes its place, with new games")
        self._orders[index] = {**self._orders[index], "life": worker.life + 1, "state": None}
        self._workers[index] = self._start(index)
        self._tell_order(index)

    def pause(
        self, within_s: float, hurry: Callable[[], bool] = lambda: False, hurried_s: float = 0.0
    ) -> list[dict[str, Any]]:
        """Let every worker come to the end of a round and tell its state; they wait until :meth:`go_on`.

        Who does not come within the time is ended, and its games are lost.

        Args:
            within_s: so long do they have.
            hurry: whether they are to have less, from now on.
            hurried_s: that much.

        Returns:
            The ``life`` and ``state`` of each worker, for its order when it is to go on from here.
        """
        for worker in self._workers:
            worker.state = None
        self._board.wish = PAUSE
        until = time.monotonic() + within_s
        hurried = False
        while silent := [worker for worker in self._workers if worker.state is None]:
            if not hurried and hurry():
                hurried, until = True, min(until, time.monotonic() + hurried_s)
            if time.monotonic() > until:
                for worker in silent:
                    within = min(within_s, hurried_s) if hurried else within_s
                    self._note(f"worker {worker.index} did not pause within {within:g} s: ended, its games are lost")
                    worker.process.kill()  # the next poll, if there is one, replaces it
                    worker.process.wait()
                    self._died(worker.index)
                break
            self.poll(min(0.1, within_s))
        # A lost worker's successor is another life: the same one would play the same games as at its beginning.
        return [{"life": w.life + (w.state is None), "state": w.state} for w in self._workers]

    def go_on(self) -> None:
        """End a pause."""
        self._board.wish = RUN
        for worker in self._workers:
            worker.state = None  # some megabytes
            self.tell(worker.index, {"go_on": True})

    def stop(self) -> None:
        """End all workers at once. What they know is lost, unless they paused before."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            _end(worker, 0.0)


def _end(worker: _Worker, within_s: float) -> None:
    """See that a worker is gone: by itself within the time, or else killed."""
    worker.line.socket.close()
    try:
        worker.process.wait(within_s)
    except subprocess.TimeoutExpired:
        worker.process.kill()
        worker.process.wait()


class Boundary:
    """A worker's side: called at the end of every round."""

    def __init__(self, board: Board, line: Line) -> None:
        self._board, self._line = board, line

    def go_on(self, state: Callable[[], dict[str, Any]]) -> bool:
        """Whether there is another round. Where the trainer wants a pause, tell it ``state`` and wait."""
        if self._board.wish == RUN:
            return True
        self._line.send({"paused": state()})
        give_back_memory()
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


def die_with(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent ends, however it does."""
    ctypes.CDLL(None, use_errno=True).prctl(1, number)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit("the trainer is gone")


def _main() -> None:
    module, descriptor, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    die_with(parent)
    # To stop is the trainer's to decide, also where a signal reaches all processes of a service.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
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
        traceback.print_exc()  # first, and flushed: the trainer ends this process as soon as it hears of the error
        sys.stderr.flush()
        with contextlib.suppress(OSError):
            line.send({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)


if __name__ == "__main__":
    _main()
