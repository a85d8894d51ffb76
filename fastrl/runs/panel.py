"""The live panel of a run, as rich draws it."""

from __future__ import annotations

import itertools

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fastrl.runs import units
from fastrl.runs.summary import Summary

_LABEL = "dim"


def panel(title: str, now: Summary) -> Panel:
    """Everything a user wants to know of a run at a glance, at most 12 lines high."""
    return Panel(
        Group(_progress(now), Text(), _numbers(now), Text(), _stages(now)),
        title=Text(title, style="bold"),
        title_align="left",
        border_style="cyan",
        padding=(0, 1),
    )


def _progress(now: Summary) -> RenderableType:
    line = Table.grid(padding=(0, 2), expand=True)
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(justify="right", no_wrap=True)
    line.add_column(justify="right", no_wrap=True)
    line.add_row(
        Text(f"{units.count(now.steps)} of {units.count(now.total_steps)} steps", style="bold"),
        ProgressBar(total=1, completed=now.done, complete_style="cyan", finished_style="green"),
        Text(units.share(now.done), style="bold"),
        Text.assemble(
            (units.duration(now.wall_s), "bold"),
            (" gone, ", _LABEL),
            (units.duration(now.eta_s), "bold"),
            (" to go", _LABEL),
        ),
    )
    return line


def _numbers(now: Summary) -> RenderableType:
    """Three columns of what, how much."""
    scores = [
        ("return", _of_games(now), "bold green"),
        ("smoothed", units.measured(now.return_smoothed), "green"),
        ("evaluation", now.evaluation, ""),
        ("best", now.best, "green"),
    ]
    speeds = [
        ("frames/s", units.count(now.frames_per_s), "bold"),
        ("steps/s", units.count(now.steps_per_s), "bold"),
        ("updates/s", units.count(now.updates_per_s), "bold"),
        ("updates", units.count(now.updates), ""),
    ]
    others = [
        (now.loss_name, units.measured(now.loss), ""),
        ("replay", units.share(now.replay_fill), ""),
        ("memory", units.megabytes(now.memory_mb), ""),
    ]
    if now.exploration_name is not None:
        others.insert(0, (now.exploration_name, units.measured(now.exploration), ""))
    table = Table.grid(padding=(0, 1), expand=True)
    for width in (5, 2, 2):
        table.add_column(no_wrap=True, style=_LABEL)
        table.add_column(no_wrap=True, ratio=width)
    for row in itertools.zip_longest(scores, speeds, others, fillvalue=("", "", "")):
        table.add_row(*(part for what, text, style in row for part in (what, Text(text, style=style))))
    return table


def _of_games(now: Summary) -> str:
    if not now.games:
        return "no game has ended yet"
    games = "1 game" if now.games == 1 else f"mean of {min(now.games, 100)} games"
    return f"{units.measured(now.return_mean)}  {games}"


def _stages(now: Summary) -> RenderableType:
    """A bar for each stage's share of the wall time; the one that limits stands out."""
    if not now.shares:
        return Text("no stage was timed yet", style=_LABEL)
    table = Table.grid(padding=(0, 1), expand=True)
    for _ in range(2):
        table.add_column(no_wrap=True)
        table.add_column(ratio=1)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True, width=6, style="yellow")
    cells = []
    for name, share in now.shares.items():
        limits = name == now.limiting
        bar = ProgressBar(total=1, completed=share, complete_style="yellow" if limits else "cyan")
        cells.append(
            (Text(name, style="bold yellow" if limits else _LABEL), bar, units.share(share), "limits" if limits else "")
        )
    for at in range(0, len(cells), 2):
        table.add_row(*(part for cell in cells[at : at + 2] for part in cell))
    return table
