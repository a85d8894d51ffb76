"""The table of a report: a line for each group of seeds, for people and for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from fastrl.runs import scores
from fastrl.runs.groups import Group, Run
from fastrl.runs.statistics import iqm, stratified_bootstrap


@dataclass(frozen=True)
class Row:
    """A line of the table; None: not known. docs/report.md says what each column means."""

    group: str
    env: str
    protocol: str | None
    seeds: int
    unfinished: int
    frames_least: float
    frames_most: float
    measured: str
    final_mean: float
    final_std: float | None
    final_iqm: float
    iqm_low: float | None
    iqm_high: float | None
    best: float
    human_normalised: float | None
    wall_hours: float
    frames_per_s: float


def summarise(group: Group, convention: str = "57") -> Row:
    """The table's line for a group.

    Its final scores are evaluations if all its runs have one, otherwise the last mean return of training: the two are
    played under different rules, and are never mixed.
    """
    runs = group.runs
    evaluated = all(run.evaluations is not None for run in runs)
    finals = final_scores(group)
    bests = [np.nanmax((run.evaluations or {})["mean"]) if evaluated else _best_of_training(run) for run in runs]
    interval = stratified_bootstrap(finals[:, np.newaxis]) if np.isfinite(finals).all() else None
    middle = float(iqm(finals)) if np.isfinite(finals).all() else float("nan")
    frames, seconds = (np.array([run.last(column) for run in runs]) for column in ("frames", "wall_s"))
    game = runs[0].game
    trained = np.array([_final_evaluation(run)["frames"] for run in runs]) if evaluated else frames
    mean, std, measured = float(finals.mean()), None, "training, last 100 games"
    if evaluated:
        mean, std, episodes = _pooled([_final_evaluation(run) for run in runs])
        measured = f"evaluation, {episodes:,} games" if episodes else "evaluation"
    return Row(
        group=group.label,
        env=group.env,
        protocol=runs[0].protocol,
        seeds=len(runs),
        unfinished=sum(not run.finished for run in runs),
        frames_least=float(trained.min()),
        frames_most=float(trained.max()),
        measured=measured,
        final_mean=mean,
        final_std=std,
        final_iqm=middle,
        iqm_low=interval[0] if interval else None,
        iqm_high=interval[1] if interval else None,
        best=float(np.mean(bests)),
        human_normalised=scores.human_normalised(game, middle, convention) if game else None,
        wall_hours=float(seconds.mean()) / 3600,
        frames_per_s=float(frames.sum() / seconds.sum()) if seconds.sum() > 0 else float("nan"),
    )


def final_scores(group: Group) -> np.ndarray:
    """The final score of each of a group's runs, all measured in the same way."""
    if all(run.evaluations is not None for run in group.runs):
        return np.array([_final_evaluation(run)["mean"] for run in group.runs])
    return np.array([run.last("return_mean_100") for run in group.runs])


def _final_evaluation(run: Run) -> dict[str, float]:
    """The evaluation after the most steps; of several there, the last written."""
    columns = run.evaluations or {}
    measured = np.flatnonzero(~np.isnan(columns["mean"]))
    last = measured[np.argsort(columns["steps"][measured], kind="stable")[-1]]
    return {name: float(values[last]) for name, values in columns.items()}


def _best_of_training(run: Run) -> float:
    values = run.metrics.get("return_mean_100", np.array([np.nan]))
    return float(np.nanmax(values)) if not np.isnan(values).all() else float("nan")


def _pooled(evaluations: Sequence[dict[str, float]]) -> tuple[float, float, int]:
    """Mean and standard deviation over all games of all seeds, and how many those were (0: not written down)."""
    means, stds = (np.array([evaluation[name] for evaluation in evaluations]) for name in ("mean", "std"))
    episodes = np.array([evaluation.get("episodes", np.nan) for evaluation in evaluations])
    weights = episodes if np.isfinite(episodes).all() and episodes.sum() > 0 else np.ones(len(means))
    mean = np.average(means, weights=weights)
    variance = np.average(stds**2 + (means - mean) ** 2, weights=weights)
    return float(mean), float(np.sqrt(variance)), int(episodes.sum()) if weights is episodes else 0


def as_csv(rows: Sequence[Row]) -> str:
    """The table with every digit; an empty cell is not known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Row)])
    for row in rows:
        writer.writerow(["" if v is None or v != v else v for v in asdict(row).values()])
    return text.getvalue()


def as_markdown(rows: Sequence[Row], convention: str = "57") -> str:
    """The table for people."""
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("group", lambda r: r.group.replace("|", "\\|")),
        ("env", lambda r: r.env),
        ("protocol", lambda r: r.protocol or "-"),
        ("seeds", lambda r: f"{r.seeds}" + (f" ({r.unfinished} unfinished)" if r.unfinished else "")),
        ("frames", lambda r: _range(r.frames_least, r.frames_most)),
        ("measured", lambda r: r.measured),
        (
            "final score",
            lambda r: _number(r.final_mean) + (f" ± {_number(r.final_std)}" if r.final_std is not None else ""),
        ),
        ("IQM [95%]", lambda r: f"{_number(r.final_iqm)} {_interval(r)}"),
        ("best", lambda r: _number(r.best)),
        (f"human-normalised ({convention})", lambda r: _number(r.human_normalised, 3)),
        ("wall hours", lambda r: _number(r.wall_hours, 2)),
        ("frames/s", lambda r: _number(r.frames_per_s, 0)),
    ]
    cells = [[name for name, _ in columns], *([cell(row) for _, cell in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    ruler = ["-" * width for width in widths[:3]] + ["-" * (width - 1) + ":" for width in widths[3:]]
    cells.insert(1, ruler)
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in cells
    )


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None or value != value else f"{value:,.{digits}f}"


def _interval(row: Row) -> str:
    return "[one seed]" if row.iqm_low is None else f"[{_number(row.iqm_low)}, {_number(row.iqm_high)}]"


def _range(least: float, most: float) -> str:
    short = [f"{v / 1e6:,.4g}M" if v >= 1e6 else f"{v:,.0f}" for v in (least, most)]
    return short[0] if short[0] == short[1] else f"{short[0]} to {short[1]}"


def across_games(groups: Sequence[Group], rows: Sequence[Row], convention: str = "57") -> list[str]:
    """For each setting that was run on several games: the IQM of all its human-normalised scores, runs and games alike.

    Only games with the same number of seeds have such a number: each weighs the same.
    """
    settings: dict[str, list[tuple[Group, Row]]] = {}
    for group, row in zip(groups, rows, strict=True):
        if row.human_normalised is not None and np.isfinite(row.human_normalised):
            setting = {k: v for k, v in group.runs[0].setting.items() if k != "env"}
            settings.setdefault(f"{row.measured.split(',')[0]} {sorted(setting.items())}", []).append((group, row))
    lines = []
    for members in settings.values():
        if len(members) < 2:
            continue
        name = f"{members[0][0].label} on {len(members)} games"
        seeds = {row.seeds for _, row in members}
        if len(seeds) > 1:
            lines.append(f"- {name}: not given, as the games have different numbers of seeds")
            continue
        normalised = [
            [
                scores.human_normalised(group.runs[0].game or "", final, convention) or 0.0
                for final in final_scores(group)
            ]
            for group, _ in members
        ]
        matrix = np.array(normalised).T
        interval = stratified_bootstrap(matrix)
        shown = f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "[one seed]"
        lines.append(f"- {name}, {matrix.shape[0]} seeds each: {iqm(matrix):.3f} {shown}")
    return lines
