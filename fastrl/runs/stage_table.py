"""The picture of a profile: a row for each stage, what it alone would allow, and a bar of the time that it takes."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

_LEAST_COLUMNS, _MOST_COLUMNS = 80, 120
_NAME, _GAP = 14, "  "
_RATES = {"frames/s": 13, "steps/s": 12, "updates/s": 11}  # so wide
_US, _US_WIDTH = "us a step", 11
_BAR_SPACE = 2


def columns() -> int:
    """How wide tables are: as the terminal is, within reason; 80 where there is none."""
    return min(_MOST_COLUMNS, max(_LEAST_COLUMNS, shutil.get_terminal_size().columns))


def amount(value: float, width: int) -> str:
    """Whole numbers from a hundred on, three digits below; with an exponent where it would not fit.

    >>> amount(1234567.8, 12), amount(11.49, 12), amount(0.03852, 12), amount(1234567.8, 8)
    ('1,234,568', '11.5', '0.0385', '1.23e+06')
    """
    words = f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"
    return words if len(words) < width else f"{value:.2e}"


@dataclass(frozen=True)
class StageTable:
    """Rows of rates that belong together.

    Attributes:
        frames_per_step: of the game.
        updates_per_step: of the algorithm; 0: nothing is updated, so there is no such column; None: it is not known.
        width: columns of the longest row.
    """

    frames_per_step: float
    updates_per_step: float | None = 0.0
    width: int = _LEAST_COLUMNS

    @property
    def _rates(self) -> list[str]:
        return [name for name in _RATES if name != "updates/s" or self.updates_per_step != 0]

    @property
    def bar_width(self) -> int:
        """Characters of the longest bar."""
        return self.width - len(_GAP) - _NAME - sum(_RATES[name] for name in self._rates) - _US_WIDTH - _BAR_SPACE

    def heading(self) -> str:
        """What the columns are."""
        rates = "".join(f"{name:>{_RATES[name]}}" for name in self._rates)
        return f"{_GAP}{'stage':<{_NAME}}{rates}{_US:>{_US_WIDTH}}"

    def row(self, name: str, us_a_step: float, bar: float) -> str:
        """Of one stage; ``bar`` is its share of the longest one, which is shown by a sign at least."""
        if us_a_step <= 0:  # too short for the clock
            return self._row(name, dict.fromkeys(self._rates), us_a_step)
        steps_per_s, updates = 1e6 / us_a_step, self.updates_per_step
        rates = {
            "frames/s": steps_per_s * self.frames_per_step,
            "steps/s": steps_per_s,
            "updates/s": None if updates is None else steps_per_s * updates,
        }
        return f"{self._row(name, rates, us_a_step)}{' ' * _BAR_SPACE}{'#' * max(1, round(self.bar_width * bar))}"

    def together(self, steps_per_s: float, frames_per_step: float, updates_per_s: float) -> str:
        """All stages at once, as it was measured."""
        rates = {"frames/s": steps_per_s * frames_per_step, "steps/s": steps_per_s, "updates/s": updates_per_s}
        return self._row("together", rates, 1e6 / steps_per_s)

    def _row(self, name: str, rates: Mapping[str, float | None], us_a_step: float) -> str:
        cells = ""
        for rate in self._rates:
            value, width = rates[rate], _RATES[rate]
            cells += f"{'-' if value is None else amount(value, width):>{width}}"
        return f"{_GAP}{name:<{_NAME}}{cells}{amount(us_a_step, _US_WIDTH):>{_US_WIDTH}}"

    def picture(self, stage_us: Mapping[str, float]) -> list[str]:
        """A heading and the rows; the longest bar is the slowest stage's."""
        longest = max(stage_us.values()) or 1.0
        return [self.heading(), *(self.row(name, us, us / longest) for name, us in stage_us.items())]


def legend(meanings: Mapping[str, str], width: int = _LEAST_COLUMNS) -> list[str]:
    """What the rows are, in lines no wider than the table."""
    lines: list[str] = []
    for name, meaning in meanings.items():
        lines += folded(f"{_GAP}{name:<{_NAME}}{meaning}", width, indent=len(_GAP) + _NAME)
    return lines


def folded(line: str, width: int = _LEAST_COLUMNS, indent: int = 4) -> list[str]:
    """A line, or several where it is too long; all but the first are indented."""
    return textwrap.wrap(line, width, subsequent_indent=" " * indent, break_on_hyphens=False) or [""]
