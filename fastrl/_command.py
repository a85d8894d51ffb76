"""How every command begins and ends."""

from __future__ import annotations

import os
import select
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_ENDED_BY_SIGINT = 130  # what a shell reports of a program that Ctrl-C ended
_ENDED_BY_SIGPIPE = 141  # what a shell reports of a program that wrote to nobody


def run(main: Callable[[], None]) -> None:
    """Run a command; end quietly on Ctrl-C, and where nobody reads its output, as in ``fastrl protocols | head -1``."""
    try:
        try:
            main()
        except SystemExit:
            _flush()  # here, where a failure can be caught: the interpreter's own flush would complain
            raise
        except KeyboardInterrupt:
            _flush()
            sys.exit(_ENDED_BY_SIGINT)
        _flush()
    except BrokenPipeError:
        if not _nobody_reads():  # another pipe broke, and that is news
            raise
        # What is still buffered goes nowhere, instead of failing again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_ENDED_BY_SIGPIPE)


def require_output(path: Path | None) -> None:
    """Raise, before anything takes long, unless a file can be written there."""
    if path is None:
        return
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise ValueError(f"--output: {path} is to be a file in a folder that is there")
    try:  # some folders let nobody make a file, whatever their permissions say
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise ValueError(f"--output: nothing can be written where {path} is to be ({error.strerror})") from None


def _flush() -> None:
    if sys.stdout is not None:  # None: standard output was closed before Python began
        sys.stdout.flush()


def _nobody_reads() -> bool:
    if sys.stdout is None:
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
