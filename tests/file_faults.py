"""Every call by which a file is changed, counted, and the n-th of them made to fail or to be the process's last."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHANGING = ("open", "write", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir", "ftruncate")


class Faults:
    """Counts changes while active.

    Args:
        at: what happens at this one, and, if ``every``, at all that follow; 0: nothing.
        fault: "kill" ends the process before the change, "ENOSPC" and "EIO" make it fail.
        only: which changes count.
        every: a disk that stays full.
    """

    def __init__(self, at: int, fault: str, only: tuple[str, ...] = CHANGING, every: bool = False) -> None:
        self.at, self.fault, self.only, self.every = at, fault, only, every
        self.calls: list[tuple[str, str]] = []
        self._names: dict[int, str] = {}

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            first = arguments[0]
            changes = name != "open" or arguments[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if changes and name in self.only and not (name == "write" and first < 3):
                what = self._names.get(first, str(first)) if isinstance(first, int) else Path(first).name
                self.calls.append((name, what))
                count = len(self.calls)
                if self.at and (count == self.at or (self.every and count >= self.at)):
                    if self.fault == "kill":
                        os.kill(os.getpid(), signal.SIGKILL)
                    number = getattr(errno, self.fault)
                    raise OSError(number, os.strerror(number))
            if name == "write" and self.fault == "kill" and len(arguments[1]) > 1 and first > 2:
                arguments = (first, arguments[1][: len(arguments[1]) // 2])  # so that a kill can leave half a file
            result = real(*arguments, **more)
            if name == "open":
                self._names[result] = Path(first).name
            return result

        return call

    @contextlib.contextmanager
    def active(self) -> Iterator[Faults]:
        """Change ``os`` for a while."""
        real = {name: getattr(os, name) for name in CHANGING}
        try:
            for name, function in real.items():
                setattr(os, name, self._wrapped(name, function))
            yield self
        finally:
            for name, function in real.items():
                setattr(os, name, function)
