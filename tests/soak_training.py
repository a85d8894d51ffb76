"""A training's memory stays what its plan says: `python tests/soak_training.py RUN...` looks at runs that were made.

For each run it plans the same one on this machine and compares that with the memory in metrics.csv, row by row, from
the warm-up to the end. A plan that asks for more than the run took is as wrong as one that asks for less.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastrl._algorithms import trainer_of
from fastrl.engine.budget import available_memory_bytes
from fastrl.engine.files import free_bytes
from fastrl.runs import command_line
from fastrl.runs.metrics import read_metrics
from fastrl.runs.planning import plan
from fastrl.runs.run_dir import RunDir
from fastrl.runs.trial import try_out

MOST_BESIDE_PLAN = 0.05
MOST_GROWTH = 0.05  # from the tenth of the run that follows the first to its end
_OF_THE_TRAINER = ("networks", "optimiser", "trainer", "replay", "priorities", "stages")


def check(directory: Path, seconds: float) -> bool:
    """Look at one run; tells, and returns whether its memory is as it should be."""
    run = RunDir.open(directory)
    trainer = trainer_of(run.algorithm)
    config = command_line.from_stored(trainer.config_class, run.config)
    rows = read_metrics(run.metrics_file)
    memory = rows["memory_mb"][len(rows["memory_mb"]) // 10 :]
    early, most = float(memory[: max(1, len(memory) // 9)].mean()), float(memory.max())
    late = float(memory[-max(1, len(memory) // 9) :].mean())
    tried = try_out(trainer, config, seconds)
    parts = plan(config, tried, available_memory_bytes(), free_bytes(config.runs)).memory
    planned = sum(part.amount / 1e6 for part in parts if part.name in _OF_THE_TRAINER)
    growth, beyond = late / early - 1, most / planned - 1
    print(
        f"{directory.name}: {rows['wall_s'][-1] / 60:.0f} minutes, {rows['steps'][-1]:,} steps: memory {early:,.0f} MB "
        f"in the second tenth, {late:,.0f} MB in the last ({growth:+.1%}), at most {most:,.0f} MB; plan "
        f"{planned:,.0f} MB ({beyond:+.1%})"
    )
    return growth <= MOST_GROWTH and abs(beyond) <= MOST_BESIDE_PLAN


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=8.0, help="of learning, for each plan (default: %(default)s)")
    arguments = parser.parse_args()
    fine = [check(directory, arguments.seconds) for directory in arguments.runs]
    sys.exit(0 if all(fine) else "a run takes other memory than its plan says, or grows")


if __name__ == "__main__":
    main()
