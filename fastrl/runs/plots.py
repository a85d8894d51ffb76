"""Learning curves as a picture: a panel for each environment, a line for each group of seeds."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrl.runs.curves import Curve, curve_over_seeds
from fastrl.runs.groups import Group
from fastrl.runs.scores import reference
from fastrl.runs.statistics import Statistic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which people with any colour vision can tell apart; grey is kept for references.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#000000")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (3, 1.5, 1, 1.5)))  # once the colours are used up
_GREY = "#666666"
_CAPTION_POINTS, _LEGEND_POINTS = 8.5, 9.5
_LETTERS_AN_INCH = 110  # of one point, on average: a letter of p points takes p of them
# What of a panel's width is not its axes': their scale and its words. What a line of a legend has before its text.
_BESIDE_AXES_INCHES, _LEGEND_KEY_INCHES = 1.0, 0.4

_METRIC_WORDS = {
    "return_mean_100": "return (mean of the last 100 games)",
    "return_smoothed": "return (smoothed)",
    "length_mean_100": "game length in steps (mean of the last 100 games)",
}
# For each x: what stands below the axis, for the first of these units that the largest value reaches.
_X_WORDS: dict[str, list[tuple[float, str]]] = {
    "frames": [(2e6, "million frames"), (2e3, "thousand frames"), (0, "frames")],
    "steps": [(2e6, "million agent steps"), (2e3, "thousand agent steps"), (0, "agent steps")],
    "wall_s": [(7200, "wall-clock hours"), (120, "wall-clock minutes"), (0, "wall-clock seconds")],
}
_X_SCALE = {"million": 1e6, "thousand": 1e3, "hours": 3600.0, "minutes": 60.0}
AUTO = "auto"  # frames of Atari games, agent steps of other envs, which have no frames
X_AXES = (AUTO, *_X_WORDS)


def draw_learning_curves(
    groups: Sequence[Group],
    path: str | Path,
    *,
    metric: str,
    x: str,
    statistic: Statistic,
    statistic_name: str,
    convention: str,
) -> None:
    """Write the learning curves of all groups as one PNG.

    Args:
        groups: what to draw; every one has at least one value of ``metric``.
        path: the file.
        metric: a column of metrics.csv.
        x: "frames", "steps" or "wall_s"; "auto": frames of Atari games, agent steps of other envs.
        statistic: what the thick line shows of the seeds.
        statistic_name: how the legend calls it.
        convention: which published scores the reference lines show, see :mod:`fastrl.runs.scores`.
    """
    # Not pyplot: a file needs no display, and the caller may have figures of their own.
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    environments = sorted({group.env for group in groups})
    columns = min(3, len(environments), math.ceil(math.sqrt(len(environments))))
    rows = math.ceil(len(environments) / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03, hspace=0.04)
    style: Any = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#999999",
        "axes.grid": True,
        "grid.color": "#E6E6E6",
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
    }
    with rc_context(style):
        figure = Figure(layout=layout)
        axes = figure.subplots(rows, columns, squeeze=False)
        panel_inches = 6.6 if columns > 1 else 7.6
        tallest = 0
        for panel, env in zip(axes.flat, environments, strict=False):
            _draw_panel(panel, [g for g in groups if g.env == env], metric, x, statistic, convention)
            tallest = max(tallest, _draw_legend(panel, panel_inches))
        for panel in axes.flat[len(environments) :]:
            panel.remove()
        # Room for the legends, which stand below the panels, where they can cover nothing.
        width = panel_inches * columns
        figure.set_size_inches(width, (4.1 + 0.2 * tallest) * rows + 0.4)
        caption = textwrap.fill(_caption(groups, statistic_name), _letters(width, _CAPTION_POINTS))
        figure.supxlabel(caption, fontsize=_CAPTION_POINTS, color=_GREY)
        figure.savefig(path, dpi=150)


def _caption(groups: Sequence[Group], statistic_name: str) -> str:
    if all(len(group.runs) == 1 for group in groups):
        return "each line: a single seed"
    return (
        f"thick: {statistic_name} over seeds, dotted where not all of them reach; thin: single seeds; "
        "band: stratified-bootstrap 95% interval"
    )


def _draw_panel(panel: Axes, groups: list[Group], metric: str, x: str, statistic: Statistic, convention: str) -> None:
    game = groups[0].runs[0].game
    if x == AUTO:
        x = "steps" if game is None else "frames"
    seeds = [[(run.metrics[x], run.metrics[metric]) for run in group.runs if metric in run.metrics] for group in groups]
    curves = [curve_over_seeds(of_group, statistic) for of_group in seeds]
    largest = max(curve.x[-1] for curve in curves)
    words = next(words for least, words in _X_WORDS[x] if largest >= least)
    unit = next((scale for word, scale in _X_SCALE.items() if word in words), 1.0)
    for index, (group, own, curve) in enumerate(zip(groups, seeds, curves, strict=True)):
        colour = _COLOURS[index % len(_COLOURS)]
        dashes = _DASHES[index // len(_COLOURS) % len(_DASHES)]
        if len(own) > 1:
            for seed_x, seed_y in own:
                measured = ~np.isnan(seed_y)
                panel.plot(seed_x[measured] / unit, seed_y[measured], color=colour, linewidth=0.7, alpha=0.35)
            panel.fill_between(curve.x / unit, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0)
        _draw_centre(panel, curve, unit, colour, dashes)
        panel.plot([], [], color=colour, linestyle=dashes, linewidth=2.2, label=f"{group.label}, {_counted(len(own))}")
    panel.set_title(groups[0].env, fontsize=12, fontweight="bold", loc="left")
    panel.set_xlabel(words)
    panel.set_ylabel(_METRIC_WORDS.get(metric, metric))
    panel.set_xlim(left=0, right=largest / unit * 1.005)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    if metric.startswith("return"):
        _draw_references(panel, game, convention)


def _draw_legend(panel: Axes, panel_inches: float) -> int:
    """Below the axes and as wide: a wider one would make the layout narrow the axes. Tells how many lines it takes."""
    handles, labels = panel.get_legend_handles_labels()
    room = panel_inches - _BESIDE_AXES_INCHES
    beside = max(map(len, labels)) <= _letters(room / 2 - _LEGEND_KEY_INCHES, _LEGEND_POINTS)
    most = _letters(room - _LEGEND_KEY_INCHES, _LEGEND_POINTS)
    # A list is one word.
    words = [re.sub(r", (?=[^\[\]]*\])", ",\N{NO-BREAK SPACE}", label) for label in labels]
    texts = [textwrap.fill(text, most, break_on_hyphens=False) for text in words]
    panel.legend(
        handles,
        texts,
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.14),
        ncols=2 if beside else 1,
        frameon=False,
        fontsize=_LEGEND_POINTS,
        borderaxespad=0,
    )
    return math.ceil(len(texts) / 2) if beside else sum(text.count("\n") + 1 for text in texts)


def _letters(inches: float, points: float) -> int:
    """How many letters of this size fit into a line."""
    return int(inches * _LETTERS_AN_INCH / points)


def _counted(seeds: int) -> str:
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def _draw_centre(panel: Axes, curve: Curve, unit: float, colour: str, dashes: Any) -> None:
    """The thick line: dotted where seeds are missing, broken where their number changes (that step is not theirs)."""
    changes = np.flatnonzero(np.diff(curve.count)) + 1
    for points in np.split(np.arange(len(curve.x)), changes):
        x, centre, seeds = curve.x[points] / unit, curve.centre[points], curve.count[points[0]]
        whole = seeds == curve.count.max()
        if len(points) == 1:
            panel.plot(x, centre, "o", color=colour, markersize=6 if whole else 3)
        else:
            panel.plot(
                x, centre, linestyle=dashes if whole else ":", color=colour, linewidth=2.2, solid_capstyle="round"
            )
        if not whole:
            panel.annotate(
                f"n={seeds}", (x[0], centre[0]), xytext=(7, -11), textcoords="offset points", color=colour, fontsize=8
            )


def _draw_references(panel: Axes, game: str | None, convention: str) -> None:
    """Published scores as grey lines, named at the right; those far outside the picture only by an arrow and number."""
    if game is None:
        return
    known, nature = reference(game, convention), reference(game, "nature")
    levels: list[tuple[float, str]] = []
    if known is not None:
        levels += [(known.random, "random"), (known.human, "human")]
    if nature is not None and nature.dqn is not None:
        levels.append((nature.dqn, "DQN (Nature)"))
    low, high = panel.get_ylim()
    reach = 0.6 * (high - low)
    inside = [level for level, _ in levels if low - reach <= level <= high + reach]
    margin = 0.03 * (max([high, *inside]) - min([low, *inside]))
    bottom, top = min([low, *(level - margin for level in inside)]), max([high, *(level + margin for level in inside)])
    panel.set_ylim(bottom, top)
    labels = []
    for level, name in sorted(levels):
        if level in inside:
            panel.axhline(level, color=_GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
            labels.append(((level - bottom) / (top - bottom), f"{name} {level:,.10g}"))
        else:
            labels.append((1.0, f"↑ {name} {level:,.10g}") if level > top else (0.0, f"↓ {name} {level:,.10g}"))
    for height, text in _spread(labels):
        panel.annotate(
            text,
            (1.01, height),
            xycoords="axes fraction",
            va="center",
            fontsize=8.5,
            color=_GREY,
            annotation_clip=False,
        )


def _spread(labels: list[tuple[float, str]], gap: float = 0.055) -> list[tuple[float, str]]:
    """The labels, in ascending order, moved apart until no two overlap."""
    heights = [height for height, _ in labels]
    for _ in range(100):
        for i in range(len(heights) - 1):
            missing = gap - (heights[i + 1] - heights[i])
            if missing > 1e-6:
                heights[i] -= missing / 2
                heights[i + 1] += missing / 2
    return [(height, text) for height, (_, text) in zip(heights, labels, strict=True)]
