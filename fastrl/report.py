"""Learning curves over seeds and a table of final scores, out of any number of runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastrl._command import run
from fastrl.engine.games import nearest
from fastrl.runs import scores
from fastrl.runs.groups import Group, find_runs, grouped
from fastrl.runs.plots import AUTO, X_AXES, draw_learning_curves
from fastrl.runs.score_table import Row, across_games, as_csv, as_markdown, summarise
from fastrl.runs.statistics import Statistic, iqm

_STATISTICS: dict[str, tuple[Statistic, str]] = {"iqm": (iqm, "interquartile mean"), "mean": (np.mean, "mean")}


def written(groups: Sequence[Group], rows: Sequence[Row], notes: Sequence[str], convention: str) -> str:
    """The report as Markdown."""
    parts = [
        "# Report",
        "![learning curves](report.png)",
        as_markdown(rows, convention),
        "Final scores are the games' own: mean ± standard deviation over all games of the last evaluations, and the "
        "interquartile mean over seeds with its stratified-bootstrap 95% interval. A best score was chosen for being "
        "high. Human-normalised scores are 0 for random play and 1 for a human, as measured in "
        f"{scores.source(convention)}.",
    ]
    together = across_games(groups, rows, convention)
    if together:
        parts.append("Human-normalised interquartile mean over seeds and games:\n\n" + "\n".join(together))
    if notes:
        parts.append("Notes:\n\n" + "\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def drawable(groups: Sequence[Group], metric: str, notes: list[str]) -> list[Group]:
    """The groups that have a value of ``metric``, each without its runs that have none."""
    names = sorted({name for group in groups for run in group.runs for name in run.metrics})
    if metric not in names:
        raise ValueError(f"--metric: no run has '{metric}'{nearest(metric, names)}; there are {', '.join(names)}")
    drawn = []
    for group in groups:
        usable = tuple(run for run in group.runs if np.isfinite(run.last(metric)))
        notes += [
            f"{run.path} has no value of {metric} yet and is not drawn" for run in group.runs if run not in usable
        ]
        if usable:
            drawn.append(Group(group.label, usable))
    if not drawn:
        raise ValueError(f"--metric: no run has a value of {metric} yet")
    return drawn


def report(arguments: argparse.Namespace) -> None:
    """Read, write the three files, and print the table."""
    if arguments.output.exists() and not arguments.output.is_dir():
        raise ValueError(f"--output: {arguments.output} is a file, expected a folder (it is made if it is not there)")
    runs = find_runs(arguments.runs)
    notes = [
        f"{run.path} left out: it has logged nothing"
        f"{'; its steps were fewer than log_every_steps' if run.finished else ' yet'}"
        for run in runs
        if not len(run.metrics["frames"])
    ]
    groups, more = grouped(run for run in runs if len(run.metrics["frames"]))
    notes += more
    if not groups:
        raise ValueError("no run has logged anything yet; wait for the first row of a metrics.csv")
    drawn = drawable(groups, arguments.metric, notes)
    rows = [summarise(group, arguments.human) for group in groups]
    arguments.output.mkdir(parents=True, exist_ok=True)
    statistic, name = _STATISTICS[arguments.statistic]
    draw_learning_curves(
        drawn,
        arguments.output / "report.png",
        metric=arguments.metric,
        x=arguments.x,
        statistic=statistic,
        statistic_name=name,
        convention=arguments.human,
    )
    (arguments.output / "report.csv").write_text(as_csv(rows))
    (arguments.output / "report.md").write_text(written(groups, rows, notes, arguments.human))
    for note in notes:
        print(f"fastrl report: {note}", file=sys.stderr)
    print(as_markdown(rows, arguments.human))
    print(f"\nwritten: {', '.join(str(arguments.output / f'report.{end}') for end in ('png', 'md', 'csv'))}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="fastrl report", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory, or a folder of such ones")
    parser.add_argument("--output", type=Path, default=Path("report"), help="where report.png, .md and .csv go")
    parser.add_argument("--metric", default="return_mean_100", help="the column of metrics.csv to draw")
    parser.add_argument(
        "--x",
        choices=X_AXES,
        default=AUTO,
        help="what to draw it over; auto: frames of Atari games, agent steps of other envs",
    )
    parser.add_argument(
        "--statistic", choices=list(_STATISTICS), default="iqm", help="what the thick line shows of seeds"
    )
    parser.add_argument(
        "--human", choices=scores.CONVENTIONS, default="57", help="whose human and random scores to take"
    )
    try:
        report(parser.parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"fastrl report: {error}")


if __name__ == "__main__":
    run(main)
