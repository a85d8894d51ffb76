"""With several processes of tests (`pytest -n 2`), those that measure time have the machine to themselves."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Turns:
    """One process's side of it. The processes meet at two files that they all have; nothing is written to them."""

    def __init__(self) -> None:
        # Who wants to be alone waits in the door, so that the others cannot keep the room full by going in and out.
        here = Path(__file__)
        self._door, self._room = (os.open(path, os.O_RDONLY) for path in (here, here.with_name("conftest.py")))

    @contextmanager
    def one(self, *, alone: bool) -> Iterator[None]:
        """A test's turn; those of other processes run meanwhile unless it is to be alone."""
        fcntl.flock(self._door, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            fcntl.flock(self._door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)
