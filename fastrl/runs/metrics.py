"""The numbers of a run: metrics.csv, and the same in TensorBoard."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.engine.files import write_private
from fastrl.runs.appended_file import AppendedFile
from fastrl.runs.events import EventFile
from fastrl.runs.tables import Table, read_table

FIRST_COLUMNS = ("frames", "steps", "updates", "wall_s")
_COUNTS = FIRST_COLUMNS[:3]


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class MetricsLog:
    """Rows of numbers into ``path_csv`` and TensorBoard.

    Promises:
        1. A row that ``write`` took survives the death of the process, whole; after ``sync``, a loss of power too.
        2. A run resumed at step S has the rows up to S that the killed run wrote, then its own.
        3. Full or failing disks stop no training: it is said once, rows wait, and follow in order when it works again.

    Args:
        path_csv: refused if it exists and no step to resume at is given.
        tensorboard_dir: None writes no events.
        resume_at_steps: rows after this step, written after the checkpoint that is resumed, are dropped.
        note: is told of trouble, in one line.

    Example:
        >>> log = MetricsLog(run / "metrics.csv", run / "tensorboard")
        >>> log.write({"frames": 4000, "steps": 1000, "updates": 250, "wall_s": 1.5, "loss": 0.25})
    """

    def __init__(
        self,
        path_csv: Path,
        tensorboard_dir: Path | None,
        resume_at_steps: int | None = None,
        *,
        note: Callable[[str], None] = _to_stderr,
    ) -> None:
        self._path = path_csv
        self._note = note
        self._columns: list[str] = []
        self._waiting: list[dict[str, str]] = []
        self._failing: set[str] = set()  # what was last said to fail
        for left in path_csv.parent.glob(f".{path_csv.name}.*.part"):  # by a process that was killed while rewriting
            left.unlink(missing_ok=True)
        if resume_at_steps is None and path_csv.exists():
            raise FileExistsError(f"metrics: {path_csv} exists; resume that run, or give the new one another name")
        self._file = AppendedFile(path_csv)
        if path_csv.exists() and resume_at_steps is not None:
            self._resume(resume_at_steps)
        self._events: EventFile | None = None
        if tensorboard_dir is not None:
            try:
                self._events = EventFile(tensorboard_dir, resume_at_steps)
            except ImportError as error:
                note(f"metrics: no TensorBoard events ({error}), only {path_csv.name}; pip install tensorboard")

    def write(self, row: Mapping[str, float | int | None]) -> None:
        """Add a row; ``None`` is "not measured then". New columns may appear in any row.

        Raises:
            ValueError: one of the first four columns is missing, or a name cannot stand in a CSV.
        """
        if missing := [name for name in FIRST_COLUMNS if row.get(name) is None]:
            raise ValueError(f"metrics: a row without {', '.join(missing)}; every row needs {', '.join(FIRST_COLUMNS)}")
        if bad := [name for name in row if not name or any(character in name for character in ',"\r\n')]:
            raise ValueError(f"metrics: column {bad[0]!r}; names need a character, and no comma, quote or line break")
        self._waiting.append({name: _text(name, value) for name, value in row.items()})
        self._attempt("csv", self._write_waiting)
        if self._events is not None:
            events, steps = self._events, int(row["steps"] or 0)
            numbers = {name: float(value) for name, value in row.items() if value is not None}
            self._attempt("TensorBoard", lambda: events.scalars(steps, numbers))

    def histograms(self, steps: int, arrays: Mapping[str, Any]) -> None:
        """Distributions of the numbers of each array, to TensorBoard only."""
        if self._events is not None:
            events = self._events
            self._attempt("TensorBoard", lambda: events.histograms(steps, arrays))

    def sync(self) -> None:
        """Put all rows on disk; worth its milliseconds beside a checkpoint."""
        self._attempt("csv", self._sync_csv)
        if self._events is not None:
            self._attempt("TensorBoard", self._events.sync)

    def close(self) -> None:
        """Write what waits, as ``sync``."""
        self.sync()

    def _sync_csv(self) -> None:
        self._write_waiting()
        self._file.sync()

    def _write_waiting(self) -> None:
        new = [name for row in self._waiting for name in row if name not in self._columns]
        columns = [*self._columns, *dict.fromkeys(new)]
        if not self._columns:
            columns = list(dict.fromkeys([*FIRST_COLUMNS, *columns]))
        rows = "".join(",".join(row.get(name, "") for name in columns) + "\n" for row in self._waiting).encode()
        if new:
            body = self._file.read().partition(b"\n")[2] if self._columns else b""
            padding = b"," * (len(columns) - len(self._columns)) + b"\n"
            self._rewrite(columns, body.replace(b"\n", padding) + rows)
        elif rows:
            self._file.append(rows)
        self._waiting.clear()

    def _rewrite(self, columns: list[str], body: bytes) -> None:
        """The whole file anew, under its name when it is whole: rows are few beside what they report."""
        content = ",".join(columns).encode() + b"\n" + body
        write_private(self._path, content)
        self._file = AppendedFile(self._path, len(content))
        self._columns = columns

    def _resume(self, at_steps: int) -> None:
        table = _table(self._path)
        if table.damage:
            self._note(f"metrics: {table.damage}; that and what follows is dropped")
        if table.columns:
            at = table.columns.index("steps")
            kept = [row for row in table.rows if int(row[at]) <= at_steps]
            self._rewrite(table.columns, "".join(",".join(row) + "\n" for row in kept).encode())
        else:
            self._path.unlink()  # not even its header was whole

    def _attempt(self, what: str, action: Callable[[], object]) -> None:
        """Do it; trouble with the disk is said when it begins and when it ends."""
        try:
            action()
        except OSError as error:
            if what not in self._failing:
                self._note(f"metrics: {what} cannot be written ({error}); training goes on and it is tried again")
            self._failing.add(what)
        else:
            if what in self._failing:
                self._note(f"metrics: {what} is written again, with what had waited")
            self._failing.discard(what)


def read_metrics(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The columns of a metrics.csv: counts as int64, the others as float64, NaN where nothing was measured.

    A last line that is not whole is left out, so a run can be read while it writes.

    Raises:
        ValueError: the file is damaged before its last line; says where.

    Example:
        >>> columns = read_metrics(run / "metrics.csv")
        >>> plot(columns["frames"], columns["return_mean_100"])
    """
    table = _table(path)
    if table.damage:
        raise ValueError(f"read_metrics: {table.damage}")
    return {
        name: np.array([int(row[i]) for row in table.rows], np.int64)
        if name in _COUNTS
        else np.array([float(row[i]) if row[i] else math.nan for row in table.rows], np.float64)
        for i, name in enumerate(table.columns)
    }


def _text(name: str, value: Any) -> str:
    """A number as text that gives the same number back."""
    if value is None:
        return ""
    try:
        if name not in _COUNTS and not isinstance(value, (int, np.integer)):
            return repr(float(value))
        if int(value) != value:
            raise ValueError
        return str(int(value))
    except (TypeError, ValueError, OverflowError):
        kind = "a whole number" if name in _COUNTS else "a number or None"
        raise ValueError(f"metrics: column {name} has {value!r}; {kind} is allowed") from None


def _table(path: Path) -> Table:
    table = read_table(path, counts=_COUNTS)
    if table.columns and tuple(table.columns[: len(FIRST_COLUMNS)]) != FIRST_COLUMNS:
        raise ValueError(
            f"metrics: {path} begins with {','.join(table.columns)[:60]!r}; its first columns are "
            f"{','.join(FIRST_COLUMNS)}"
        )
    return table
