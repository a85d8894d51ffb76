"""The results of a benchmark run: from pytest-benchmark's JSON to what is kept, and read from either.

pytest --benchmark-only --benchmark-json=/tmp/all.json
python bench/kept_results.py /tmp/all.json bench/results/2026-11-21.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_KEPT_OF_MACHINE = ("processor", "machine", "python_version", "system", "release")


def read(path: Path) -> dict[str, Any]:
    """The kept form of a file of either kind: ``machine``, ``datetime``, ``commit``, and ``contests`` by name.

    Raises:
        ValueError: it is of neither kind.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if isinstance(found, dict) and {"machine", "datetime", "commit", "contests"} <= set(found):
        return found
    if not isinstance(found, dict) or not {"benchmarks", "machine_info", "datetime", "commit_info"} <= set(found):
        raise ValueError(f"{path}: holds neither kept results nor what --benchmark-json writes")
    machine = found["machine_info"]
    contests = {
        one["name"]: {**one["extra_info"], "rounds": one["stats"]["rounds"]}
        for one in found["benchmarks"]
        if "speed" in one["extra_info"]
    }
    return {
        "machine": {
            **{name: machine.get(name) for name in _KEPT_OF_MACHINE},
            "cpu": machine.get("cpu", {}).get("brand_raw"),
        },
        "datetime": found["datetime"],
        "commit": found["commit_info"].get("id", "")[:12],
        "contests": contests,
    }


def main() -> None:
    """The command."""
    if len(sys.argv) != 3:
        sys.exit("usage: python bench/kept_results.py FROM_PYTEST.json KEPT.json")
    try:
        found = read(Path(sys.argv[1]))
    except ValueError as error:
        sys.exit(str(error))
    Path(sys.argv[2]).write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(found['contests'])} contests, commit {found['commit']}: {sys.argv[2]}")


if __name__ == "__main__":
    main()
