"""What a user sees of a run, on a terminal, in a file, and when nobody looks any more."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastrl.runs import units
from fastrl.runs.console import Console

ROOT = Path(__file__).parents[1]
ROW: dict[str, float | int | None] = {
    "frames": 19_200_000,
    "steps": 4_800_000,
    "updates": 1_187_500,
    "wall_s": 3912.4,
    "return_mean_100": 15.37,
    "return_smoothed": 16.021,
    "games": 2311,
    "loss": 0.0031415,
    "epsilon": 0.1,
    "replay_fill": 1.0,
    "memory_mb": 8123.0,
    "frames_per_s": 32412.3,
    "steps_per_s": 8103.1,
    "updates_per_s": 2025.7,
}
SHARES = {"act": 0.08, "wait_envs": 0.11, "learn": 0.71, "other": 0.1}
START: dict[str, float | int | None] = {"frames": 0, "steps": 0, "updates": 0, "wall_s": 0.0}

TRAIN = """
import sys
sys.path[:0] = [TESTS]
from test_console import ROW, SHARES
from fastrl.runs.console import Console
with Console("dqn Pong", 10_000_000) as console:
    for i in range(300):
        console.show({**ROW, "steps": i}, SHARES)
        if i == 1:
            console.note("TRAP: conv.weight does not learn")
            print("printed by the user")
    console.note("saved")
print("done", file=sys.stderr)
sys.exit(7)
""".replace("TESTS", repr(str(Path(__file__).parent)))

USER_PRINTS = 'print("printed by the user")'


def start(code: str = TRAIN, **how: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "TERM": "xterm"}
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment, **how)


def drawn(row: dict[str, float | int | None], shares: dict[str, float], width: int, **evaluations: Any) -> str:
    from rich.console import Console as RichConsole

    from fastrl.runs.panel import panel
    from fastrl.runs.summary import Summary

    now = Summary.of(row, shares, 10_000_000, evaluations.get("evaluation"), evaluations.get("best"))
    rich = RichConsole(record=True, width=width, file=io.StringIO(), force_terminal=True)
    rich.print(panel("dqn Pong", now))
    return rich.export_text()


# ---- the panel


@pytest.mark.parametrize("width", [80, 120])
def test_the_panel_has_all_that_a_user_wants_to_know(width: int) -> None:
    text = drawn(
        ROW, SHARES, width, evaluation={"steps": 4_750_000, "mean": 17.2}, best={"steps": 4_500_000, "mean": 18.43}
    )

    for what in (
        r"4\.80M of 10\.0M steps .* 48%  1h05m gone, 10m41s to go",
        r"return +15\.37  mean of 100 games +frames/s +32\.4k +epsilon +0\.1 ",
        r"smoothed +16\.02 +steps/s +8,103 +loss +0\.003142 ",
        r"evaluation 17\.2 at 4\.75M steps +updates/s +2,026 +replay +100% ",
        r"best +18\.43 at 4\.50M steps +updates +1\.19M +memory +8\.1 GB ",
        r"learn .* 71% limits wait_envs .* 11% ",
        r"act .* 8% +other .* 10% ",
    ):
        assert re.search(what, text), what
    assert all(len(line) <= width for line in text.splitlines())
    assert len(text.splitlines()) <= 12
    assert "…" not in text


@pytest.mark.parametrize("width", [20, 60, 200])
def test_a_run_that_has_just_begun_can_be_shown_at_any_width(width: int) -> None:
    text = drawn(START, {}, width)

    assert "no game has ended yet" in text or width < 80
    assert all(len(line) <= width for line in text.splitlines())


def test_a_policy_gradient_shows_its_entropy_and_its_losses_name() -> None:
    text = drawn({**START, "policy_loss": 1.5, "entropy": 0.69}, {}, 100)

    assert re.search(r"entropy +0\.69", text)
    assert re.search(r"policy loss +1\.5", text)


def test_a_trainer_without_an_epsilon_shows_none() -> None:
    row = {name: value for name, value in ROW.items() if name not in ("epsilon", "loss")} | {"critic_loss_mean": 0.5}
    text = drawn(row, SHARES, 100)
    file = io.StringIO()
    with Console("ddpg", 10_000_000, file=file) as console:
        console.show(row, SHARES)

    for shown in (text, file.getvalue()):
        assert "epsilon" not in shown
        assert re.search(r"critic loss mean +0\.5", shown)
        assert "None" not in shown
    assert re.search(r"return .* frames/s .* critic loss mean", text)  # no hole where it would stand
    assert re.search(r"memory +8\.1 GB", text)


# ---- plain lines


def test_without_a_terminal_there_is_one_aligned_line_for_each_row() -> None:
    file = io.StringIO()
    with Console("dqn Pong", 10_000_000, file=file) as console:
        console.show({**ROW, "steps": 1234, "return_mean_100": None, "wall_s": 7.0}, SHARES)
        console.note("TRAP: conv.weight does not learn")
        console.show(ROW, SHARES)
        console.show(START)
    title, first, note, second, start = file.getvalue().splitlines()

    assert title == "dqn Pong, 10.0M steps"
    assert note == "TRAP: conv.weight does not learn"
    assert re.match(
        r" +1h05m +4\.80M steps +48% +19\.2M frames +8,103 steps/s +2,026 updates/s +return +15\.37 ", second
    )
    assert second.endswith("10m41s to go  learn 71%")
    assert "return      - " in first
    for column in (" steps/s", "return", "epsilon", "to go", "learn"):
        assert first.index(column) == second.index(column)
    assert start.isascii()


def test_a_note_that_the_file_cannot_hold_is_written_in_what_it_can() -> None:
    raw = io.BytesIO()
    console = Console("Pong", 10, file=io.TextIOWrapper(raw, encoding="ascii"))
    console.note("größer")
    console.note("still there")

    assert raw.getvalue().decode().splitlines()[1:] == ["gr\\xf6\\xdfer", "still there"]


# ---- a real terminal


def test_on_a_terminal_the_panel_is_redrawn_and_notes_stay_above() -> None:
    parent, child_side = pty.openpty()
    child = start(stdout=child_side)
    os.close(child_side)
    seen = b""
    while True:
        try:
            piece = os.read(parent, 65536)
        except OSError:  # how Linux says that a terminal has no other end any more
            break
        if not piece:
            break
        seen += piece
    _, errors = child.communicate(timeout=20)
    os.close(parent)
    text = seen.decode()

    assert child.returncode == 7, errors
    assert errors == "done\n"
    assert text.count("dqn Pong") >= 4  # drawn with the first row, under each line that stays, and at the end
    assert "299 of 10.0M steps" in text  # the last row, though rows came faster than it draws
    assert "\x1b[?25l" in text  # the cursor is hidden,
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # and comes back
    assert "TRAP: conv.weight does not learn" in text
    assert "printed by the user" in text
    assert text.index("printed by the user") < text.rindex("299 of 10.0M steps")


# ---- nobody looks


@pytest.mark.parametrize("terminal", [False, True])
def test_training_goes_on_when_the_reader_is_gone(terminal: bool) -> None:
    code = TRAIN.replace("10_000_000)", f"10_000_000, interactive={terminal})").replace(USER_PRINTS, "")
    child = start(code, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read(10)
    child.stdout.close()
    _, errors = child.communicate(timeout=20)

    assert (child.returncode, errors) == (7, "done\n")


def test_training_goes_on_when_its_terminal_is_gone() -> None:
    parent, child_side = pty.openpty()
    child = start(TRAIN.replace("i == 1:", "i > 200:"), stdout=child_side)
    os.close(child_side)
    os.read(parent, 10)
    os.close(parent)
    _, errors = child.communicate(timeout=20)

    assert child.returncode == 7, errors
    assert errors.endswith("done\n")


@pytest.mark.parametrize("terminal", [False, True])
def test_training_goes_on_without_a_stdout(terminal: bool) -> None:
    code = TRAIN.replace("10_000_000)", f"10_000_000, interactive={terminal})").replace(USER_PRINTS, "")
    child = start("import sys; sys.stdout.close()\n" + code)
    _, errors = child.communicate(timeout=20)

    assert child.returncode == 7
    assert errors.count("console: cannot draw") == 1
    assert errors.endswith("done\n")


def test_training_goes_on_where_stdout_never_was() -> None:
    child = start(TRAIN, preexec_fn=lambda: os.close(1))
    _, errors = child.communicate(timeout=20)

    assert (child.returncode, errors.splitlines()[-1]) == (7, "done")


def test_a_full_disk_behind_stdout_is_said_once() -> None:
    with open("/dev/full", "w") as full:
        child = start(TRAIN.replace(USER_PRINTS, ""), stdout=full)
        _, errors = child.communicate(timeout=20)

    assert child.returncode == 7
    assert errors.count("console: cannot draw") == 1
    assert "No space left" in errors


def test_lines_come_again_when_the_disk_has_room_again() -> None:
    class Disk(io.StringIO):
        full = False

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    disk = Disk()
    console = Console("Pong", 10, file=disk)
    disk.full = True
    console.note("lost")
    disk.full = False
    console.note("kept")

    assert disk.getvalue().splitlines()[1:] == ["kept"]


@pytest.mark.parametrize("interactive", [False, True])
def test_a_mistake_in_the_drawing_stops_nothing(interactive: bool, capfd: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    with Console("Pong", 10, file=file, interactive=interactive) as console:
        console.show({**ROW, "steps_per_s": "fast"}, {})  # type: ignore[dict-item]
        console.show(ROW, SHARES)


def test_ctrl_c_while_drawing_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pressed(io.StringIO):
        def write(self, text: str) -> int:
            raise KeyboardInterrupt

    console = Console("Pong", 10, file=io.StringIO())
    monkeypatch.setattr(console, "_file", Pressed())

    with pytest.raises(KeyboardInterrupt):
        console.note("text")


# ---- units


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (0.5, "0.5"), (950, "950"), (9_999, "9,999"), (10_000, "10.0k"), (250_000, "250.0k"),
     (1_187_500, "1.19M"), (48e6, "48.0M"), (2e9, "2.00G"), (None, "-"), (float("nan"), "-"), (float("inf"), "-")],
)  # fmt: skip
def test_counts(value: float | None, text: str) -> None:
    assert units.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.9, "0s"), (59.9, "59s"), (187, "3m07s"), (3600 * 5 + 720, "5h12m"), (86400 * 2 + 3 * 3600, "2d03h"),
     (None, "-"), (float("inf"), "-")],
)  # fmt: skip
def test_durations(value: float | None, text: str) -> None:
    assert units.duration(value) == text
