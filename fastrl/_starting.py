"""Ctrl-C while a command is still importing, which takes seconds: there is nothing to save and nothing to tell.

This file is the first of fastrl's that Python runs. Only a process that was started as one of fastrl's commands is
concerned: programs that import fastrl keep what they have Python do on Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

ENDED_BY_SIGINT = 130  # what a shell reports of a program that Ctrl-C ended


def is_command(arguments: Sequence[str], original: Sequence[str], python: str) -> bool:
    """Whether fastrl was imported to run one of its commands.

    Args:
        arguments: ``sys.argv``; it begins with ``-m`` while Python looks for the module to be run.
        original: ``sys.orig_argv``.
        python: ``sys.executable``; the script ``fastrl`` is installed beside it.
    """
    if list(arguments[:1]) == ["-m"] and "-m" in original[:-1]:
        package, *names = original[original.index("-m") + 1].split(".")
        return package == "fastrl" and len(names) < 2  # what lies deeper are processes that commands start
    return list(arguments[:1]) == [os.path.join(os.path.dirname(python), "fastrl")]


def leave(number: int, frame: FrameType | None) -> None:
    """End the process at once."""
    os._exit(ENDED_BY_SIGINT)


def started() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, as it does in every program."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Where SIGINT is ignored (in a shell's background), it stays so.
if is_command(getattr(sys, "argv", []), sys.orig_argv, sys.executable) and (
    signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, leave)
