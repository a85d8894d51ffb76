"""The results of a benchmark run: from pytest-benchmark's JSON to what is kept, and read from either.

python bench/kept_results.py /tmp/all.json bench/results/2026-11-21.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_KEPT_OF_MACHINE = ("processor", "machine", "python_version", "system", "release", "usable_cores")
_KINDS = {"machine": dict, "datetime": str, "commit": str, "contests": dict}  # what kept results hold at least


def read(path: Path) -> dict[str, Any]:
    """The kept form of a file of either kind.

    It has ``machine``, ``versions`` of packages, ``datetime``, ``commit``, ``dirty`` (whether files differed from that
    commit; None where that was not kept), and ``contests`` by name.

    Raises:
        ValueError: it is of neither kind, or damaged.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    try:
        if isinstance(found, dict) and set(_KINDS) <= set(found):
            return _checked(found)
        if isinstance(found, dict) and {"benchmarks", "machine_info", "datetime", "commit_info"} <= set(found):
            return _checked(_kept(found))
    except _DamagedError as error:
        raise ValueError(f"{path}: damaged, or of another program: {error}; give a file as it was written") from None
    raise ValueError(
        f"{path}: holds neither kept results nor what --benchmark-json writes; give one of bench/results or write one "
        "with pytest --benchmark-only --benchmark-json=FILE"
    )


class _DamagedError(Exception):
    """A part has not the form that it has in every file of its kind."""


def _of_kind(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise _DamagedError(f"{name} is {str(value)[:40]!r} and should be of type {kind.__name__}")
    return value


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    for name, kind in _KINDS.items():
        _of_kind(found[name], kind, name)
    for name, contest in found["contests"].items():
        _of_kind(contest, dict, f"contest {name}")
    versions = _of_kind(found.get("versions", {}), dict, "versions")
    return {**found, "versions": versions, "dirty": found.get("dirty")}


def _kept(found: dict[str, Any]) -> dict[str, Any]:
    """Of what pytest-benchmark wrote."""
    machine = _of_kind(found["machine_info"], dict, "machine_info")
    cpu = machine.get("cpu")
    commit = _of_kind(found["commit_info"], dict, "commit_info")
    contests = {}
    for place, one in enumerate(_of_kind(found["benchmarks"], list, "benchmarks")):
        name = _of_kind(_of_kind(one, dict, f"benchmark {place}").get("name"), str, f"name of benchmark {place}")
        seen = _of_kind(one.get("extra_info", {}), dict, f"extra_info of {name}")
        if "speed" not in seen:  # a benchmark that is no contest
            continue
        if name in contests:
            raise _DamagedError(f"{name} is there twice")
        stats = _of_kind(one.get("stats", {}), dict, f"stats of {name}")
        contests[name] = {**seen, "rounds": stats.get("rounds")}
    return {
        "machine": {
            **{name: machine.get(name) for name in _KEPT_OF_MACHINE},
            "cpu": cpu.get("brand_raw") if isinstance(cpu, dict) else None,
        },
        "versions": machine.get("versions", {}),
        "datetime": found["datetime"],
        "commit": _of_kind(commit.get("id") or "", str, "id of the commit")[:12],
        "dirty": commit.get("dirty"),
        "peers": peers_that_ran(contests),
        "contests": contests,
    }


def peers_that_ran(contests: dict[str, dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Of each peer: how many contests know it, and in how many of them it ran."""
    known: Counter[str] = Counter()
    ran: Counter[str] = Counter()
    for contest in contests.values():
        for name, why_not in contest.get("peers", {}).items():
            known[name] += 1
            ran[name] += why_not is None
    return {name: {"ran": ran[name], "contests": known[name]} for name in sorted(known)}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench/kept_results.py", description="Keep what a benchmark run showed, small enough to commit."
    )
    parser.add_argument("written", type=Path, help="what pytest --benchmark-only --benchmark-json=FILE wrote")
    parser.add_argument("kept", type=Path, help="the file to write, in a folder that is there")
    given = parser.parse_args(arguments)
    try:
        found = read(given.written)
        if not found["contests"]:
            raise ValueError(f"{given.written}: holds no contest of ours: nothing to keep")
        given.kept.write_text(json.dumps(found, indent=1) + "\n")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if found["dirty"]:
        print("measured with files that differ from the commit: these figures are of no commit", file=sys.stderr)
    print(f"{len(found['contests'])} contests, commit {found['commit']}: {given.kept}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
