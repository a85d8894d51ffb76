"""GPU paths against the CPU's, then their speed beside Stable-Baselines3's; one table, and the same as JSON.

All of it ends within --minutes. Each case has an equal part of what is left; what there is no time for is said to be
left out, and so is what a peer that is not installed would have had. A check or a case that fails is named at the end,
and makes the exit code 1, as does a check that there was no time for.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import CASES, PEERS, Case, NotThere, TooShort, Turn
from checks import CHECKS
from subjects import be_one_of_many

import fastrl
from fastrl.engine.budget import usable_cores

_LEAST_MINUTES, _MOST_MINUTES = 0.1, 60.0
_LEAST_S = {"cuda": 8.0, "cpu": 1.0}  # of a case; a training's start is in it
_TO_TELL_S = 2.0  # kept for the table


def table(rows: list[list[str]]) -> str:
    """Columns as wide as they need; the first to the left, numbers to the right, the last one's text as it is."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    last = len(widths) - 1

    def cell(text: str, at: int) -> str:
        return text if at == last else text.ljust(widths[at]) if at == 0 else text.rjust(widths[at])

    return "\n".join("  ".join(cell(text, at) for at, text in enumerate(row)).rstrip() for row in rows)


def number(value: float | None) -> str:
    """To three digits at least.

    >>> number(12345.6), number(7.256), number(None)
    ('12,346', '7.26', '-')
    """
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio(value: float | None, of: float | None, what: str) -> str:
    return f"{value / of:{what}}" if value and of else "-"


class Measurement:
    """All that is found, and how it is told. Whoever ends early still tells what there is."""

    def __init__(self, out: Path, device: str, minutes: float) -> None:
        self.out, self.device = out, device
        self.ends_at = time.monotonic() + minutes * 60 - _TO_TELL_S
        self.facts = {
            "device": torch.cuda.get_device_name(0) if device == "cuda" else "cpu",
            "cores": usable_cores(),
            "torch": torch.__version__,
            "fastrl": fastrl.build_info()["source_hash"],
        }
        self.checks: dict[str, str] = {}
        self.rates: dict[str, float] = {}  # ours
        self.peers: dict[str, float] = {}
        self.shares: dict[str, dict[str, float]] = {}
        self.said: dict[str, str] = {}  # why there is no rate
        self.failed: list[str] = []
        self.under_way = "nothing"
        self.lock = threading.Lock()

    @property
    def left_s(self) -> float:
        return self.ends_at - time.monotonic()

    def attempt(self, name: str, task: Callable[[], Any]) -> Any:
        """What the task returns, or None: then it is told why."""
        self.under_way = name
        try:
            return task()
        except NotThere as missing:
            self.said[name] = f"not run: {missing}"
        except TooShort as short:
            self.said[name] = f"no rate: {short}"
        except Exception as error:
            traceback.print_exc()
            self.said[name] = f"FAILED: {type(error).__name__}: {error}"
            self.failed.append(name)
        finally:
            self.under_way = "nothing"
        return None

    def check(self, names: list[str]) -> None:
        for name in names:
            if self.left_s < _LEAST_S[self.device]:
                self.said[name] = "left out: the time was over"
                self.failed.append(name)
            else:
                found = self.attempt(name, lambda check=CHECKS[name]: check(self.device))  # type: ignore[misc]
                self.said.setdefault(name, f"ok: {found}")
            self.checks[name] = self.said[name]
            print(f"{name:<36} {self.said[name]}", flush=True)

    def time(self, cases: list[Case], peers: bool) -> None:
        """Each case, and its peer right after it, in an equal part of the time that is left."""
        todo: list[tuple[str, Callable[[Turn], float], dict[str, float], str]] = []
        for case in cases:
            todo.append((case.name, case.rate, self.rates, case.unit))
            peer = f"SB3: {case.peer}"
            if peers and case.peer and all(peer != name for name, *_ in todo):
                todo.append((peer, PEERS[case.peer], self.peers, case.unit))
        for at, (name, rate, found, unit) in enumerate(todo):
            if self.left_s < _LEAST_S[self.device]:
                self.said[name] = "left out: the time was over"
            else:
                turn = Turn(self.device, time.monotonic() + max(_LEAST_S[self.device], self.left_s / (len(todo) - at)))
                value = self.attempt(name, lambda rate=rate, turn=turn: rate(turn))  # type: ignore[misc]
                if value is not None:
                    found[name] = value
                if turn.shares:
                    self.shares[name] = turn.shares
            told = self.said.get(name) or f"{number(found[name])} {unit}"
            print(f"{name:<42} {told}", flush=True)

    def told(self, cases: list[Case]) -> str:
        """The one table, and what else there is to say."""
        rows = [["case", "ours", "SB3", "ratio", "limit", "share", "unit"]]
        for case in cases:
            ours, theirs = self.rates.get(case.name), self.peers.get(f"SB3: {case.peer}")
            limit = case.limit(self.rates)
            shares = (ratio(ours, theirs, ".2f"), number(limit), ratio(ours, limit, ".0%"))
            rows.append([case.name, number(ours), number(theirs), *shares, case.unit])
        lines = [f"{name}: {text}" for name, text in self.said.items() if not text.startswith("ok")]
        for name, stages in self.shares.items():
            largest = sorted(stages.items(), key=lambda item: -item[1])[:4]
            lines.append(f"{name}: its time goes to {', '.join(f'{stage} {share:.0%}' for stage, share in largest)}")
        good = sum(text.startswith("ok") for text in self.checks.values())
        lines.append(f"checks passed: {good} of {len(self.checks)}")
        lines.append(f"FAILED: {', '.join(self.failed)}" if self.failed else "nothing failed")
        head = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        return "\n".join([head, table(rows), *lines])

    def tell(self, cases: list[Case]) -> None:
        """Print the table, and leave it and the numbers in the folder."""
        text = self.told(cases)
        found = {
            "facts": self.facts, "checks": self.checks, "rates": self.rates, "peers": self.peers,
            "limits": {case.name: case.limit(self.rates) for case in cases}, "shares": self.shares, "said": self.said,
            "failed": self.failed,
        }  # fmt: skip
        (self.out / "table.txt").write_text(text + "\n")
        (self.out / "gpu.json").write_text(json.dumps(found, indent=1))
        print(f"\n{text}", flush=True)

    def end_in_time(self, cases: list[Case]) -> threading.Timer:
        """A thread that tells what there is and ends the process when all should long be over: a device can hang."""

        def end() -> None:
            with self.lock:
                faulthandler.dump_traceback()
                self.failed.append(f"{self.under_way} (did not end in time)")
                try:
                    self.tell(cases)
                finally:
                    os._exit(1)

        timer = threading.Timer(self.left_s, end)
        timer.daemon = True
        timer.start()
        return timer


def chosen(only: list[str]) -> tuple[list[str], list[Case]]:
    """Checks and cases with one of these texts in their names; all, if there are none."""
    known = [*CHECKS, *(case.name for case in CASES)]
    for text in only:
        if not any(text in name for name in known):
            sys.exit(f"measure: --only {text!r} is in no name of a check or a case; known: {'; '.join(known)}")

    def is_chosen(name: str) -> bool:
        return not only or any(text in name for text in only)

    return [name for name in CHECKS if is_chosen(name)], [case for case in CASES if is_chosen(case.name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and table.txt")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it (default: 8)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this script")
    parser.add_argument("--only", action="append", default=[], help="checks and cases with this in their names")
    parser.add_argument("--no-peers", action="store_true", help="without Stable-Baselines3")
    arguments = parser.parse_args()
    if not (math.isfinite(arguments.minutes) and _LEAST_MINUTES <= arguments.minutes <= _MOST_MINUTES):
        sys.exit(f"measure: --minutes {arguments.minutes:g} is outside [{_LEAST_MINUTES:g}, {_MOST_MINUTES:g}]; give 8")
    be_one_of_many()
    names, cases = chosen(arguments.only)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("measure: torch finds no GPU; --device cpu tries this script without one")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"measure: --out {arguments.out} cannot be made ({error.strerror}); give a folder")
    found = Measurement(arguments.out, arguments.device, arguments.minutes)
    guard = found.end_in_time(cases)
    found.check(names)
    found.time(cases, peers=not arguments.no_peers)
    with found.lock:
        guard.cancel()
        found.tell(cases)
    sys.exit(1 if found.failed else 0)


if __name__ == "__main__":
    main()
