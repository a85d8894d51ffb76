"""Keep what a run showed, small enough to commit: its configuration, thinned metrics, and evaluations.

    python bench/keep_run.py runs/NAME results/dqn-pong [EVALUATION.json ...]

What `fastrl evaluate --output` wrote is kept under its own name. Paths of the machine become plain names.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastrl.runs.run_dir import RunDir
from fastrl.runs.tables import thin_metrics

_ROWS = 300
_TABLES = ("metrics.csv", "evaluations.csv")


def plain(value: Any) -> Any:
    """Absolute paths, wherever they are, by their last part."""
    if isinstance(value, str):
        return Path(value).name if value.startswith("/") else value
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return value


def keep(run: Path, folder: Path, evaluations: list[Path]) -> Path:
    """Copy it; returns where to.

    Raises:
        ValueError: the run or an evaluation is not there or damaged, or two would be kept under one name.
        OSError: it is kept there already, or the folder cannot be made.
    """
    to = folder / run.resolve().name
    contents = {"config.json": plain(RunDir.open(run).description)}
    for path in evaluations:
        if path.name in (*contents, *_TABLES):
            raise ValueError(f"{path}: {path.name} would be kept twice; rename one")
        try:
            contents[path.name] = plain(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read ({error}); give what `fastrl evaluate --output` wrote") from None
    try:
        to.mkdir(parents=True)
    except FileExistsError:
        raise FileExistsError(f"{to}: exists already; delete it to keep the run anew, or give another folder") from None
    try:
        for name, content in contents.items():
            (to / name).write_text(json.dumps(content, indent=1) + "\n")
        thin_metrics(run / "metrics.csv", rows=_ROWS, to=to / "metrics.csv")
        if (run / "evaluations.csv").exists():
            shutil.copyfile(run / "evaluations.csv", to / "evaluations.csv")
    except (OSError, ValueError):
        shutil.rmtree(to)  # half of a run is none, and would be in the way of the next try
        raise
    return to


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench/keep_run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="its directory")
    parser.add_argument("folder", type=Path, help="where to keep it, in a directory of its name")
    parser.add_argument("evaluations", type=Path, nargs="*", help="files of `fastrl evaluate --output`")
    given = parser.parse_args(arguments)
    try:
        print(keep(given.run, given.folder, given.evaluations))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
