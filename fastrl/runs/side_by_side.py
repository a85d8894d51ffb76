"""One run for each of several seeds, as many at a time as the cores carry."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from fastrl._command import run
from fastrl.engine.budget import usable_cores
from fastrl.runs.stop import StopSignals
from fastrl.runs.workers import die_with

_POLL_S = 0.2
_SEEDS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def parse_seeds(text: str) -> list[int]:
    """Seeds as the command line has them.

    >>> parse_seeds("0-2,7")
    [0, 1, 2, 7]
    """
    if not _SEEDS.fullmatch(text):
        raise ValueError(f"seeds: {text!r} is neither like 0-4 nor like 0,3,7")
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise ValueError(f"seeds: {part} ends before it begins")
        found += range(int(first), int(last or first) + 1)
    if len(set(found)) != len(found):
        raise ValueError(f"seeds: {text} has a seed twice")
    return found


def is_said(flag: str, arguments: Sequence[str]) -> bool:
    """Whether a command line has a value for ``flag``; tyro takes ``--torch_threads`` for ``--torch-threads``."""
    return any(argument.partition("=")[0].replace("_", "-") == flag for argument in arguments)


def _without(arguments: Sequence[str], *flags: str) -> list[str]:
    """The command line without these flags and their values."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in flags:
            skip = True
        elif not any(argument.startswith(f"{flag}=") for flag in flags):
            kept.append(argument)
    return kept


def _retell(seed: int, output: IO[str] | None) -> None:
    for line in output or ():
        print(f"[seed {seed}] {line.rstrip()}", flush=True)


def run_seeds(algorithm: str, arguments: Sequence[str], text: str, name: str | None) -> int:
    """Train once for each seed, each run in a process and a directory of its own; returns the exit code.

    Args:
        algorithm: the trainer.
        arguments: its command line.
        text: the seeds, see :func:`parse_seeds`.
        name: of the runs, to which ``-s<seed>`` is added; None: each takes its own.
    """
    waiting = parse_seeds(text)
    cores = usable_cores()
    at_once = min(cores, len(waiting))
    each = max(1, cores // at_once)
    shared = _without(arguments, "--seeds", "--seed", "--name")
    # Cores are shared out: a run that is not told otherwise takes its part of them.
    for flag in ("--threads", "--torch-threads"):
        if not is_said(flag, shared):
            shared += [flag, str(each)]
    print(f"seeds {text}: {at_once} runs at a time, {each} of {cores} cores each", flush=True)
    running: dict[int, subprocess.Popen[str]] = {}
    failed: list[int] = []
    told: set[int] = set()
    with StopSignals() as stop:
        try:
            while running or (waiting and not stop.requested):
                while waiting and len(running) < at_once and not stop.requested:
                    seed = waiting.pop(0)
                    own = ["--seed", str(seed), *(["--name", f"{name}-s{seed}"] if name else [])]
                    running[seed] = _started(algorithm, [*shared, *own])
                    threading.Thread(target=_retell, args=(seed, running[seed].stdout), daemon=True).start()
                for seed, process in list(running.items()):
                    if stop.requested and seed not in told:
                        process.send_signal(signal.SIGTERM)  # it ends with a checkpoint
                        told.add(seed)
                    if process.poll() is not None:
                        del running[seed]
                        if process.returncode != 0:
                            failed.append(seed)
                            print(f"seed {seed}: ended with exit code {process.returncode}", flush=True)
                time.sleep(_POLL_S)
        finally:
            for process in running.values():  # a second Ctrl-C, which waits for no checkpoint
                process.kill()
    if stop.requested:
        if waiting:
            print(f"never begun: seeds {', '.join(map(str, waiting))}", flush=True)
        return stop.exit_code
    return 1 if failed else 0


def _started(algorithm: str, arguments: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", __name__, algorithm, str(os.getpid()), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,  # no terminal: plain lines, which can be told apart
        text=True,
        start_new_session=True,  # Ctrl-C comes here, and is passed on once
    )


if __name__ == "__main__":
    # A run would else train on unseen when whoever gives out the seeds is killed.
    die_with(int(sys.argv[2]), signal.SIGTERM)
    trainer = importlib.import_module(f"fastrl.{sys.argv[1]}")
    sys.argv = [f"fastrl {sys.argv[1]}", *sys.argv[3:]]
    run(trainer.main)
