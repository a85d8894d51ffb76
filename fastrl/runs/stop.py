"""Ctrl-C and SIGTERM as a wish that the training loop grants at its next boundary, or as an orderly end."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class StopSignals:
    """While entered, SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal is gone) only set ``requested``.

    The trainer stops at its next iteration, writes a checkpoint and exits with ``exit_code``. A second Ctrl-C raises
    ``KeyboardInterrupt`` at once. The handlers that were there before come back at the end. Forked children keep those.

    A shell that starts a job in the background, or nohup, has SIGINT or SIGHUP ignored: that stays so.

    Args:
        note: is told in one line where signals cannot be taken over, which is in any thread but the main one.

    Example:
        >>> with StopSignals() as stop:
        ...     while steps < total_steps and not stop.requested:
        ...         train()
        >>> if stop.requested:
        ...     save()
        ...     sys.exit(stop.exit_code)
    """

    def __init__(self, note: Callable[[str], None] = _to_stderr) -> None:
        self._note = note
        self._previous: dict[signal.Signals, Any] = {}
        self._received: signal.Signals | None = None
        self._received_at = math.inf
        self._process = os.getpid()

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        return self._received is not None

    def requested_for(self, seconds: float) -> bool:
        """Whether to stop, and that for so long already."""
        return time.monotonic() - self._received_at >= seconds

    @property
    def exit_code(self) -> int:
        """What the process should end with: 130 after SIGINT, 143 after SIGTERM, 0 if nothing came."""
        return 128 + self._received if self._received is not None else 0

    @property
    def reason(self) -> str:
        """What came and what follows, in one line; empty if nothing came. For the trainer to show: a handler cannot."""
        if self._received is None:
            return ""
        return f"{self._received.name}: ends after this iteration, with a checkpoint; Ctrl-C ends at once, without one"

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            self._note("stop: not in the main thread, so Ctrl-C and SIGTERM end the run without a last checkpoint")
            return self
        self._process = os.getpid()
        for number in _SIGNALS:
            if number is signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle) or signal.SIG_DFL
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child: the wish was not meant for this object
            signal.signal(number, self._previous[signal.Signals(number)])
            os.kill(os.getpid(), number)
        elif number == signal.SIGINT and self._received is not None:
            raise KeyboardInterrupt
        elif self._received is None:
            self._received, self._received_at = signal.Signals(number), time.monotonic()


@contextlib.contextmanager
def exits_in_order() -> Iterator[None]:
    """While entered, SIGTERM and SIGHUP end the process as an error does: folders are removed and children ended.

    For commands that keep nothing of what they are at. A handler that is there already stays; so does everything in
    any thread but the main one.
    """
    taken_over: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _exit)
                taken_over.append(number)
    try:
        yield
    finally:
        for number in taken_over:
            signal.signal(number, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
