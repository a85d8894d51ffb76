"""A peer in a process of its own, with the environment that its users have.

fastrl says how long torch's threads watch for work (fastrl/engine/openmp.py), which holds for a whole process. A peer
in the same one would be timed with what suits us.
"""

from __future__ import annotations

import inspect
import multiprocessing
import os
import runpy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any

_OURS = "GOMP_SPINCOUNT"
Task = Callable[[], Any]


def environment() -> dict[str, str]:
    """This process's, without what fastrl put into it."""
    return {name: value for name, value in os.environ.items() if name != _OURS}


def apart(make: Callable[..., Task]) -> Callable[..., Task]:
    """Like ``make``, a function of a module, but what it makes lives and runs in another process."""

    def make_apart(*arguments: Any, **more: Any) -> Task:
        return _Apart(make, arguments, more)

    return make_apart


class _Apart:
    def __init__(self, make: Callable[..., Task], arguments: tuple[Any, ...], more: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        with _without_ours():
            # By its file: pytest may have imported the benchmark under a name that no other process finds.
            process = context.Process(
                target=_serve, args=(theirs, inspect.getfile(make), make.__name__, arguments, more)
            )
            process.start()
        theirs.close()
        Finalize(self, self._line.close, exitpriority=1)  # which ends the process, before Python waits for it
        self._answer()

    def __call__(self) -> Any:
        self._line.send(None)
        return self._answer()

    def _answer(self) -> Any:
        try:
            failure, said = self._line.recv()
        except EOFError:
            raise RuntimeError("its process ended without an answer; what it said is above") from None
        if failure is not None:
            raise failure
        return said


@contextmanager
def _without_ours() -> Iterator[None]:
    kept = os.environ.pop(_OURS, None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ[_OURS] = kept


def _serve(line: Connection, file: str, make: str, arguments: tuple[Any, ...], more: dict[str, Any]) -> None:
    """Make the task, then do it whenever asked."""
    try:
        task = runpy.run_path(file)[make](*arguments, **more)
        line.send((None, None))
        while True:
            line.recv()
            line.send((None, task()))
    except EOFError:  # nobody asks any more
        return
    except Exception as error:
        line.send((error, None))
