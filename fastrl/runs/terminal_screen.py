"""Pictures in a terminal: two pixels a character, the upper half block in one colour on the other."""

from __future__ import annotations

import os
import sys
from typing import TextIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastrl.runs.shown_game import Picture

# The other screen of the terminal, so that what stood there comes back; no cursor.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[2J", "\x1b[0m\x1b[?25h\x1b[?1049l"
# Terminals that know these show what lies between at once; others ignore them.
_TOGETHER, _SHOW = "\x1b[?2026h", "\x1b[?2026l"


class TerminalScreen:
    """Shows pictures in the terminal that ``stream`` is, and leaves it as it was.

    Args:
        aspect: width to height as it is to look; None: that of the pictures.
        stream: where it is shown.
    """

    live = True
    closed = False

    def __init__(self, aspect: float | None = None, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        if not self._stream.isatty():
            raise ValueError(
                "--to terminal: the output is no terminal here; write a file instead, --to game.gif for example"
            )
        if os.environ.get("TERM", "dumb") == "dumb":
            raise ValueError("--to terminal: this terminal (TERM=dumb) has no colours; use --to game.gif for example")
        self._aspect = aspect
        self._size = (0, 0)
        self._before: npt.NDArray[np.uint8] | None = None
        self._entered = False

    def show(self, picture: Picture, caption: str) -> None:
        """Replace what is shown."""
        size = os.get_terminal_size(self._stream.fileno())
        text = [_TOGETHER]
        if not self._entered:
            self._entered = True
            text.append(_ENTER)
        if tuple(size) != self._size:  # the first time, and when the window's size changed
            self._size, self._before = (size.columns, size.lines), None
            text.append("\x1b[0m\x1b[2J")
        cells = as_cells(picture, max(1, size.columns), max(1, size.lines - 1), self._aspect)
        left = (size.columns - cells.shape[1]) // 2 + 1
        text.append(changed_text(cells, self._before, left))
        # A caption may hold names out of a foreign run's files; they are to give the terminal no orders.
        plain = "".join(c if c.isprintable() else "?" for c in caption)[: size.columns - 1]
        text.append(f"\x1b[0m\x1b[{cells.shape[0] + 1};1H{plain}\x1b[K{_SHOW}")
        self._before = cells
        self._stream.write("".join(text))
        self._stream.flush()

    def close(self, keep: bool = True) -> None:
        """Bring back the cursor and what was shown before."""
        if self._entered:
            self._entered = False
            self._stream.write(_LEAVE)
            self._stream.flush()


def as_cells(picture: Picture, columns: int, lines: int, aspect: float | None) -> npt.NDArray[np.uint8]:
    """The picture as large as it fits, (lines, columns, 6): the colours of each character's upper and lower half.

    A character is taken to be twice as high as it is wide, so that half of one is a square.
    """
    wanted = aspect or picture.shape[1] / picture.shape[0]
    width = max(1, min(columns, int(2 * lines * wanted)))
    height = max(1, min(lines, round(width / wanted / 2)))
    resized = np.asarray(Image.fromarray(picture).resize((width, 2 * height), Image.Resampling.BOX))
    return np.concatenate([resized[0::2], resized[1::2]], axis=2)


def changed_text(cells: npt.NDArray[np.uint8], before: npt.NDArray[np.uint8] | None, left: int = 1) -> str:
    """What makes a terminal that shows ``before`` show ``cells``.

    Args:
        cells: as :func:`as_cells` gives them.
        before: what is shown now; None: nothing is known of it.
        left: the column of the first cell, from 1.
    """
    known = before is not None and before.shape == cells.shape
    changed = (cells != before).any(axis=2) if known else np.ones(cells.shape[:2], np.bool_)
    parts: list[str] = []
    colours: list[int] | None = None  # that the terminal writes in now
    for line in np.flatnonzero(changed.any(axis=1)):
        places = np.flatnonzero(changed[line])
        first, last = int(places[0]), int(places[-1])
        parts.append(f"\x1b[{line + 1};{left + first}H")
        for cell in cells[line, first : last + 1].tolist():
            if cell != colours:
                colours = cell
                parts.append("\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*cell))
            parts.append("▀")
    return "".join(parts)
