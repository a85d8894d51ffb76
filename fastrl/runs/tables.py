"""The CSV files of a run, as their readers need them: also while a trainer writes, and after it was killed."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np


def read_columns(path: str | Path) -> dict[str, np.ndarray]:
    r"""Every column of a table of numbers; an empty cell is nan.

    A row counts when its line is complete. What follows the last line feed was cut while it was written (or is being
    written): its last number may lack digits, so it is left out even if no cell is missing.

    >>> from pathlib import Path
    >>> _ = Path("metrics.csv").write_text("steps,loss\n4,0.5\n8,\n12,0.2")
    >>> read_columns("metrics.csv")
    {'steps': array([4., 8.]), 'loss': array([0.5, nan])}
    """
    header, rows = _read(Path(path))
    cells = np.full((len(rows), len(header)), np.nan)
    for index, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(
                f"read_columns: line {index + 2} of {path} has {len(row)} cells where its first line names "
                f"{len(header)} columns; the file is damaged: restore it, or delete that line"
            )
        for column, text in enumerate(row):
            if text:
                try:
                    cells[index, column] = float(text)
                except ValueError:
                    raise ValueError(
                        f"read_columns: line {index + 2} of {path} has '{text[:40]}' under {header[column]}, where "
                        f"only a number or nothing is allowed; the file is damaged: restore it, or delete that line"
                    ) from None
    return {name: cells[:, column] for column, name in enumerate(header)}


def without_redone(columns: dict[str, np.ndarray], by: str = "steps") -> dict[str, np.ndarray]:
    """Without the rows behind which a resumed run went back: it did them again, and later rows say how.

    >>> without_redone({"steps": np.array([4, 8, 12, 8]), "loss": np.array([0.9, 0.8, 0.7, 0.6])})
    {'steps': array([4, 8]), 'loss': array([0.9, 0.6])}
    """
    place = columns[by]
    if len(place) < 2:
        return columns
    lowest_later = np.minimum.accumulate(place[::-1])[::-1][1:]
    stays = np.append(place[:-1] < lowest_later, True)
    return {name: values[stays] for name, values in columns.items()}


def thin_metrics(path: str | Path, rows: int = 500, to: str | Path | None = None) -> int:
    """Keep at most so many rows of a table, evenly spaced, the first and the last among them, each as it was written.

    For a metrics.csv that is committed as evidence: a plot needs no more rows than it has pixels.

    Args:
        path: the table.
        rows: how many rows to keep, at least 2.
        to: where to write; None: in place of ``path``.

    Returns:
        How many rows were kept.
    """
    if rows < 2:
        raise ValueError(f"thin_metrics: rows is {rows}, expected at least 2 (the first and the last row)")
    header, kept = _read(Path(path))
    if len(kept) > rows:
        kept = [kept[i] for i in np.linspace(0, len(kept) - 1, rows).round().astype(int)]
    target = Path(path if to is None else to)
    fresh = target.with_name(target.name + ".new")
    with open(fresh, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *kept])
    os.replace(fresh, target)  # a reader, or a crash, meets the old table or the new one
    return len(kept)


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    """The names and the complete rows of a table, as text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"read_columns: {path} is not text ({error}); expected a table as a run writes it") from None
    complete = text[: text.rfind("\n") + 1]
    if "\0" in complete:
        raise ValueError(
            f"read_columns: {path} has zero bytes; the file is damaged (a full disk or a crash leaves them)"
        )
    rows = [row for row in csv.reader(complete.splitlines()) if row]
    if not rows:
        raise ValueError(f"read_columns: {path} has no complete line; expected one with the names of the columns")
    header = rows[0]
    if len(set(header)) < len(header) or "" in header:
        raise ValueError(f"read_columns: the first line of {path} has a name twice or an empty one")
    return header, rows[1:]
