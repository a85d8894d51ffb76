"""What a user sees of a run: a live panel on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TextIO

from fastrl.runs import units
from fastrl.runs.summary import Row, Summary

_PANEL_REST_S = 1.0  # drawing a panel takes about 10 ms: rows that come faster are not all drawn


class Console:
    """Shows rows of metrics.

    Nothing that goes wrong while it draws stops the training: that is said once, and what can come back (a full disk
    behind a redirected stdout) is tried again at the next row.

    It draws when it is told to, in the thread that tells it: no other thread, so forks and signals are safe.

    Args:
        title: names the run: algorithm, env, device.
        total_steps: what the progress bar and the time to go are about.
        file: where to; stdout by default.
        interactive: live panel or plain lines; by default, whether ``file`` is a terminal.

    Example:
        >>> with Console("dqn PongNoFrameskip-v4", 10_000_000) as console:
        ...     console.note("device: cuda, 16 threads")
        ...     console.show(row, clock.take().shares)
    """

    def __init__(
        self, title: str, total_steps: int, *, file: TextIO | None = None, interactive: bool | None = None
    ) -> None:
        self._title = title
        self._total_steps = total_steps
        self._file: TextIO = sys.stdout if file is None else file
        self._is_stdout = self._file is sys.stdout
        self._silent = False
        self._complained = False
        self._live: Any = None
        self._latest: tuple[Row, Mapping[str, float]] | None = None  # a row that was not drawn yet
        self._draw_again_at = 0.0
        self._evaluation: Row | None = None
        self._best: Row | None = None
        self._drawing(self._open, interactive)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def show(self, row: Row, shares: Mapping[str, float] | None = None) -> None:
        """Show a row of metrics and the stages' shares of the wall time."""
        self._drawing(self._show, row, shares or {})

    def evaluated(self, evaluation: Row, best: Row) -> None:
        """Tell the newest evaluation and the best so far, rows of evaluations.csv; seen at the next ``show``."""
        self._evaluation, self._best = evaluation, best

    def note(self, text: str) -> None:
        """Print a line that stays: a warning, a checkpoint."""
        self._drawing(self._print, text)

    def close(self) -> None:
        """Leave the last panel on the screen and give the terminal back."""
        if self._latest is not None:
            self._drawing(self._draw)
        self._fall_silent()

    def _open(self, interactive: bool | None) -> None:
        if interactive is None:
            interactive = self._file.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        if interactive:
            from rich.console import Console as RichConsole
            from rich.live import Live

            rich = RichConsole(file=self._file, force_terminal=True)
            rich.__dict__["on_broken_pipe"] = _raise_broken_pipe  # rich's own would end the process
            self._live = Live(
                console=rich, auto_refresh=False, redirect_stdout=self._is_stdout, redirect_stderr=self._is_stdout
            )
            self._live.start()
        else:
            self._print(f"{self._title}, {units.count(self._total_steps)} steps")

    def _show(self, row: Row, shares: Mapping[str, float]) -> None:
        self._latest = (row, shares)
        if self._live is None:
            self._draw()
        elif time.monotonic() >= self._draw_again_at:
            self._draw()
            self._draw_again_at = time.monotonic() + _PANEL_REST_S

    def _draw(self) -> None:
        assert self._latest is not None
        now = Summary.of(*self._latest, self._total_steps, self._evaluation, self._best)
        self._latest = None
        if self._live is None:
            self._print(plain_line(now))
        else:
            from fastrl.runs.panel import panel

            self._live.update(panel(self._title, now), refresh=True)

    def _print(self, text: str) -> None:
        if self._live is None:
            encoding = getattr(self._file, "encoding", None) or "utf-8"
            print(text.encode(encoding, "backslashreplace").decode(encoding), file=self._file, flush=True)
        else:
            from rich.text import Text

            style = "bold yellow" if text.startswith(("TRAP", "warning")) else ""
            self._live.console.print(Text(text, style=style))

    def _drawing(self, draw: Callable[..., None], *arguments: Any) -> None:
        """Draw; whatever fails, the training goes on."""
        if self._silent:
            return
        try:
            draw(*arguments)
        except BrokenPipeError:  # nobody reads any more, as after ``| head``: nothing to complain about
            self._forget_stdout()
            self._fall_silent()
        except OSError as error:
            if self._live is not None:  # the terminal is gone
                self._forget_stdout()
                self._fall_silent()
            self._complain(error)
        except Exception as error:  # a closed file, or a mistake in the drawing
            self._fall_silent()
            self._complain(error)

    def _fall_silent(self) -> None:
        self._silent = True
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(Exception):
                live.stop()  # shows the cursor, gives stdout and stderr back
        try:
            self._file.flush()
        except Exception:
            self._forget_stdout()

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            with contextlib.suppress(Exception):
                print(f"console: cannot draw ({error!r}); training goes on", file=sys.__stderr__)

    def _forget_stdout(self) -> None:
        """Point stdout to nowhere: else a later print would fail, or Python's flush at exit, with exit code 120."""
        if self._is_stdout:
            with contextlib.suppress(Exception):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._file.fileno())
                os.close(nowhere)


def _raise_broken_pipe() -> None:
    raise BrokenPipeError


def plain_line(now: Summary) -> str:
    """One line of a log: aligned, so that a column can be followed with the eye."""
    parts = [
        f"{units.duration(now.wall_s):>6}",
        f"{units.count(now.steps):>6} steps {units.share(now.done):>4}",
        f"{units.count(now.frames):>6} frames",
        f"{units.count(now.steps_per_s):>6} steps/s",
        f"{units.count(now.updates_per_s):>6} updates/s",
        f"return {units.measured(now.return_mean):>6} smoothed {units.measured(now.return_smoothed):>6}",
    ]
    if now.exploration_name is not None:
        parts.append(f"{now.exploration_name} {units.measured(now.exploration):>6}")
    parts.append(f"{now.loss_name} {units.measured(now.loss):>9}")
    if now.replay_fill is not None:
        parts.append(f"replay {units.share(now.replay_fill):>4}")
    if now.memory_mb is not None:
        parts.append(f"{units.megabytes(now.memory_mb):>7}")
    parts.append(f"{units.duration(now.eta_s):>6} to go")
    if now.limiting is not None:
        parts.append(f"{now.limiting} {units.share(now.shares[now.limiting])}")
    return "  ".join(parts)
