"""Keep what a run showed, small enough to commit: its configuration, thinned metrics, and evaluations.

    python bench/keep_run.py runs/NAME results/dqn-pong [EVALUATION.json ...]

What `fastrl evaluate --output` wrote is kept under its own name. Paths of the machine become plain names.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from fastrl.runs.run_dir import RunDir
from fastrl.runs.tables import thin_metrics

_ROWS = 300


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
    """Copy it; returns where to."""
    to = folder / run.name
    description = plain(RunDir.open(run).description)
    contents = {path.name: plain(json.loads(path.read_text())) for path in evaluations}
    to.mkdir(parents=True)
    for name, content in {**contents, "config.json": description}.items():
        (to / name).write_text(json.dumps(content, indent=1) + "\n")
    shutil.copyfile(run / "metrics.csv", to / "metrics.csv")
    thin_metrics(to / "metrics.csv", rows=_ROWS)
    if (run / "evaluations.csv").exists():
        shutil.copyfile(run / "evaluations.csv", to / "evaluations.csv")
    return to


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    print(keep(Path(sys.argv[1]), Path(sys.argv[2]), [Path(path) for path in sys.argv[3:]]))
