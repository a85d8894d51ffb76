"""The CSV files of a run, as their readers need them: also while a trainer writes, and after it was killed."""

from __future__ import annotations

import codecs
import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
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
    table = _undamaged(Path(path))
    cells = np.full((len(table.rows), len(table.columns)), np.nan)
    for index, row in enumerate(table.rows):
        cells[index] = [float(text) if text else np.nan for text in row]
    return {name: cells[:, column] for column, name in enumerate(table.columns)}


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
    table = _undamaged(Path(path))
    kept = table.rows
    if len(kept) > rows:
        kept = [kept[i] for i in np.linspace(0, len(kept) - 1, rows).round().astype(int)]
    target = Path(path if to is None else to)
    fresh = target.with_name(target.name + ".new")
    with open(fresh, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([table.columns, *kept])
    os.replace(fresh, target)  # a reader, or a crash, meets the old table or the new one
    return len(kept)


@dataclass(frozen=True)
class Table:
    """What a file of rows of numbers has that is whole."""

    columns: list[str]  # empty: not even the line with their names is whole
    rows: list[list[str]]  # as text, up to the first damage
    damage: str  # what is wrong with the first line that is no row; "": nothing


def read_table(path: Path, counts: Sequence[str] = ()) -> Table:
    """The complete lines of a table; what reads or resumes one decides what damage means.

    Args:
        path: the table.
        counts: columns that have a whole number in every row; the others a number or nothing.

    Raises:
        ValueError: its first line is not one of names.
    """
    *lines, _ = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")  # what follows the last one was cut
    if not lines:
        return Table([], [], "")
    try:
        columns = _cells(lines[0])
    except UnicodeDecodeError as error:
        raise ValueError(f"read_columns: {path} is not text ({error}); expected a table as a run writes it") from None
    if len(set(columns)) < len(columns) or "" in columns:
        raise ValueError(f"read_columns: the first line of {path} has a name twice or an empty one")
    rows: list[list[str]] = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        try:
            if b"\0" in line:
                where = f"line {number} is no row of {len(columns)} numbers"
                return Table(columns, rows, f"{where}: {path} has zero bytes there, as a full disk or a crash leaves")
            row = _cells(line)
            if len(row) != len(columns):
                raise ValueError(f"has {len(row)} cells where its first line names {len(columns)} columns")
            for name, text in zip(columns, row, strict=True):
                _require_number(name, text, name in counts)
        except UnicodeDecodeError as error:
            return Table(columns, rows, f"line {number} of {path} is not text ({error})")
        except ValueError as error:
            return Table(columns, rows, f"line {number} of {path} {error}")
        rows.append(row)
    return Table(columns, rows, "")


def _undamaged(path: Path) -> Table:
    table = read_table(path)
    if not table.columns:
        raise ValueError(f"read_columns: {path} has no complete line; expected one with the names of the columns")
    if table.damage:
        raise ValueError(f"read_columns: {table.damage}; the file is damaged: restore it, or delete that line")
    return table


def _cells(line: bytes) -> list[str]:
    return next(csv.reader([line.decode()]), [""])


def _require_number(name: str, text: str, whole: bool) -> None:
    try:
        int(text) if whole else float(text or 0)
    except ValueError:
        allowed = "a whole number" if whole else "a number or nothing"
        raise ValueError(f"has '{text[:40]}' under {name}, where only {allowed} is allowed") from None
