"""`fastrl watch`: what a terminal, a GIF and a caption show, at what pace, and that the terminal is left as it was."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_envs
import tiny_runs
from gymnasium import spaces
from PIL import Image

import fastrl
from fastrl import watch
from fastrl.engine.recorded_envs import evaluation_protocol
from fastrl.runs.evaluation import epsilon_greedy, evaluate
from fastrl.runs.shown_game import shown_game
from fastrl.runs.subject import Subject
from fastrl.runs.terminal_screen import TerminalScreen, as_cells, changed_text
from fastrl.runs.video_files import GifFile, Mp4File, indexed, with_caption


def quiet(_: str) -> None:
    pass


def refusal(*arguments: str | Path) -> str:
    """What the command says when it ends with an error."""
    with pytest.raises(SystemExit) as ended:
        watch.main([str(argument) for argument in arguments])
    assert ended.value.code not in (0, None)
    return str(ended.value.code)


def succeed(*arguments: str | Path) -> None:
    with pytest.raises(SystemExit) as ended:
        watch.main([str(argument) for argument in arguments])
    assert ended.value.code == 0


class Recorder:
    """A screen that keeps what it is shown."""

    live = False
    closed = False

    def __init__(self) -> None:
        self.pictures: list[Any] = []
        self.captions: list[str] = []

    def show(self, picture: Any, caption: str) -> None:
        self.pictures.append(picture.copy())
        self.captions.append(caption)

    def close(self, keep: bool = True) -> None:
        pass


def play(game: Any, choose: Any, episodes: int | None, ended: Any = lambda: False) -> tuple[Recorder, list[Any]]:
    screen = Recorder()
    games = watch.play(game, choose, screen, episodes=episodes, before_picture=lambda: [], ended=ended)
    return screen, list(games)


# What is played


def test_the_caption_tells_what_led_to_the_picture() -> None:
    policy = fastrl.load(tiny_runs.pong(), note=quiet)
    rules = {"protocol": "sb3", **evaluation_protocol("sb3"), "max_frames": 120}
    game = shown_game("PongNoFrameskip-v4", rules, 1)
    chosen = Subject("", "PongNoFrameskip-v4", rules, policy, 0.0, 1)

    screen, games = play(game, watch.Chooser(chosen, game.action_space), 1)

    pool = policy.make_env(1, **policy.evaluation_rules | {"max_frames": 120}, autoreset="disabled")
    obs, _ = pool.reset(seed=1)
    assert np.array_equal(screen.pictures[0], pool.screens()[0])
    for step, (picture, caption) in enumerate(zip(screen.pictures[1:], screen.captions[1:], strict=True), 1):
        values = policy.values(obs)[0]
        obs, *_ = pool.step([values.argmax()])
        assert np.array_equal(picture, pool.screens()[0])
        name = pool.action_meanings[int(values.argmax())]
        assert caption == f"game 1 | return 0 | step {step} | {name} | Q {values.max():.3f}"
    assert games == [(0.0, len(screen.pictures) - 1)]
    assert len(screen.pictures) > 15
    pool.close()
    game.close()


def test_what_is_watched_is_what_evaluating_one_game_by_the_same_seed_plays() -> None:
    policy = fastrl.load(tiny_runs.pong(), note=quiet)
    rules = {"protocol": "sb3", **evaluation_protocol("sb3"), "max_frames": 200}
    game = shown_game("PongNoFrameskip-v4", rules, 7)
    chooser = watch.Chooser(Subject("", "PongNoFrameskip-v4", rules, policy, 0.5, 7), game.action_space)
    watched, measured = [], []

    def choose(obs: Any) -> tuple[Any, float | None]:
        watched.append(chooser(obs)[0])
        return watched[-1], None

    act = epsilon_greedy(policy.policy, 0.5, 7)

    def measure(obs: Any) -> Any:
        measured.append(int(act(obs)[0]))
        return np.array(measured[-1:])

    play(game, choose, 1)
    evaluate(measure, "PongNoFrameskip-v4", rules, episodes=1, seed=7)

    assert watched == measured
    assert len(set(watched)) > 3
    game.close()


def test_a_value_is_told_only_where_the_network_has_one() -> None:
    numbers = fastrl.load(tiny_runs.pendulum(), note=quiet)
    chooser = watch.Chooser(Subject("", numbers.env_id, None, numbers, 0.0, 0), spaces.Box(-2, 2, (1,)))
    action, value = chooser(np.zeros(3))
    assert (action.tolist(), value) == (numbers.act(np.zeros(3)).tolist(), None)

    cart = fastrl.load(tiny_runs.cart(), note=quiet)
    chooser = watch.Chooser(Subject("", cart.env_id, None, cart, 0.0, 0), spaces.Discrete(2))
    obs = np.ones(4)
    assert chooser(obs) == (cart.act(obs), cart.values(obs).max())
    cart.policy.acts = "sample"  # from logits
    assert chooser(obs)[1] is None


def test_games_follow_each_other_until_somebody_ends_them() -> None:
    game = shown_game(small_envs.UNEVEN, None, 0)
    chooser = watch.Chooser(Subject("", small_envs.UNEVEN, None, None, 1.0, 0), game.action_space)

    _, whole = play(game, chooser, 30)
    calls = iter(range(50))
    _, cut = play(game, chooser, None, ended=lambda: next(calls) == 49)

    assert len(whole) == 30
    assert {steps for _, steps in whole} == {1, 20}
    assert all(total == steps for total, steps in whole)
    assert sum(steps for _, steps in cut) <= 49


def test_steps_take_as_long_as_they_are_told_and_who_is_late_does_not_hurry() -> None:
    pace = watch.Pace(0.03, lambda: False)
    began = time.perf_counter()
    for _ in range(5):
        pace.wait()
    assert time.perf_counter() - began >= 0.14

    time.sleep(0.3)
    began = time.perf_counter()
    for _ in range(4):
        pace.wait()
    assert time.perf_counter() - began >= 0.05

    slow = watch.Pace(60.0, lambda: True)
    began = time.perf_counter()
    slow.wait()
    assert time.perf_counter() - began < 1


def test_a_live_runs_newer_weights_are_taken_and_a_damaged_checkpoint_is_not(tmp_path: Path) -> None:
    run = tiny_runs.copy_of(tiny_runs.cart(), tmp_path / "cart")

    def latest() -> Any:
        return fastrl.load(run, "latest", note=quiet)

    chooser = watch.Chooser(
        Subject("", "CartPole-v1", None, latest(), 0.0, 0), shown_game("CartPole-v1", None, 0).action_space
    )
    follower = watch.Follower(latest, chooser)

    def look() -> int:
        follower._next_s = 0.0  # now
        follower.look()
        assert chooser.trained is not None
        return chooser.trained.steps

    steps = [look()]
    tiny_runs.save_again(run, 900)
    steps.append(look())
    tiny_runs.damage(tiny_runs.save_again(run, 1000))
    steps.append(look())
    for path in (run / "checkpoints").glob("ckpt-*"):
        path.unlink()
    steps.append(look())

    assert steps == [300, 900, 900, 900]


# The terminal


def as_a_terminal_shows(text: str, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """The colours of the upper and lower halves after ``text``: the few orders that are used, read anew."""
    shown = np.zeros((*shape, 6), np.uint8)
    line = column = 0
    colours = [0] * 6
    for order, mark in re.findall(r"\x1b\[([0-9;]*[A-Za-z])|(▀)", text):
        if mark:
            shown[line, column] = colours
            column += 1
        elif order.endswith("H"):
            line, column = (int(number) - 1 for number in order[:-1].split(";"))
        elif order.endswith("m") and order.startswith("38;2;"):
            numbers = [int(number) for number in order[:-1].split(";")]
            assert numbers[5:7] == [48, 2]
            colours = numbers[2:5] + numbers[7:10]
    return shown


def test_a_terminal_shows_the_cells_also_after_changes_only() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (12, 30, 6), dtype=np.uint8)
    second = first.copy()
    second[3, 4:9], second[11, 29] = 7, 9

    text = changed_text(first, None)
    change = changed_text(second, first)

    assert np.array_equal(as_a_terminal_shows(text, (12, 30)), first)
    assert np.array_equal(as_a_terminal_shows(text + change, (12, 30)), second)
    assert change.count("▀") == 6
    assert changed_text(second, second) == ""


@pytest.mark.parametrize(
    ("columns", "lines", "aspect", "expected"),
    [(100, 39, 4 / 3, (38, 100)), (200, 30, 4 / 3, (30, 80)), (80, 24, None, (20, 80)), (1, 1, None, (1, 1))],
)
def test_a_picture_is_as_large_as_it_fits(
    columns: int, lines: int, aspect: float | None, expected: tuple[int, int]
) -> None:
    picture = np.zeros((10, 20, 3), np.uint8)
    picture[:5] = (10, 20, 30)

    cells = as_cells(picture, columns, lines, aspect)

    assert cells.shape == (*expected, 6)
    assert cells[0, 0, :3].tolist() == [10, 20, 30]
    if expected[0] > 1:
        assert cells[-1, -1].tolist() == [0] * 6


class Terminal:
    """A terminal to write to, and what arrives there."""

    def __init__(self) -> None:
        import fcntl
        import struct
        import termios

        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.stream = os.fdopen(slave, "w")
        self.seen = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other side is closed
            while data := os.read(self._master, 65_536):
                self.seen += data

    def all_seen(self) -> str:
        """After nobody has it open any more."""
        self.stream.close()
        self._reader.join(60)
        assert not self._reader.is_alive()
        return self.seen.decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    made = Terminal()
    yield made
    made.all_seen()
    os.close(made._master)


def test_a_terminal_is_left_as_it_was_and_takes_no_orders_from_names(terminal: Terminal) -> None:
    screen = TerminalScreen(4 / 3, terminal.stream)
    picture = np.full((210, 160, 3), 50, np.uint8)

    screen.show(picture, "evil\x1b]0;title\x07name " + "x" * 200)
    screen.show(picture, "step 2")
    screen.close()
    screen.close()

    text = terminal.all_seen()
    assert text.startswith("\x1b[?2026h\x1b[?1049h\x1b[?25l")
    assert text.endswith("\x1b[0m\x1b[?25h\x1b[?1049l")
    assert text.count("\x1b[?1049l") == 1
    assert "evil?]0;title?name " in text
    assert "x" * 80 not in text  # would scroll
    assert text.count("▀") == 61 * 23  # once: nothing changed afterwards
    assert "\x1b[24;1Hstep 2" in text


def test_a_terminal_that_has_no_colours_or_is_none_is_refused(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = pytest.raises(ValueError, match=r"the output is no terminal here; write a file instead, --to game\.gif")
    with open(os.devnull, "w") as nothing, refused:
        TerminalScreen(None, nothing)
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(ValueError, match="TERM=dumb"):
        TerminalScreen(None, terminal.stream)


def test_ctrl_c_gives_the_terminal_back(terminal: Terminal) -> None:
    stream = terminal.stream.fileno()
    command = [sys.executable, "-m", "fastrl.watch", "--policy", "random", "--env", "PongNoFrameskip-v4"]
    process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
    deadline = time.monotonic() + 60
    while b"step 3 " not in terminal.seen and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    code = process.wait(30)
    took_s = time.monotonic() - began

    text = terminal.all_seen()
    assert code == 130, text[-500:]
    assert took_s < 10
    assert "step 3 " in text
    assert text.index("\x1b[?25l") < text.index("\x1b[?25h") < text.index("stopped after 0 whole games")


# Files


def frames_of(path: Path) -> tuple[list[int], list[Any]]:
    """How long each picture of a GIF is shown, in milliseconds, and the pictures."""
    lasts, frames = [], []
    with Image.open(path) as read:
        for i in range(read.n_frames):
            read.seek(i)
            lasts.append(read.info["duration"])
            frames.append(np.asarray(read.convert("RGB")))
    return lasts, frames


def test_a_gif_holds_every_picture_to_the_colour_and_lasts_as_long_as_the_game(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (40, 3), dtype=np.uint8)
    pictures = [colours[rng.integers(0, 40, (30, 40))] for _ in range(12)]
    for i in range(3, 6):  # small changes, as in a game
        pictures[i] = pictures[2].copy()
        pictures[i][i : i + 4, 7:9] = colours[i]
    gif = GifFile(tmp_path / "game.gif", pictures_per_s=15)

    for i, picture in enumerate(pictures):
        gif.show(picture, f"step {i}")
    assert list(tmp_path.glob("[!.]*")) == []  # not there until it is whole
    gif.close()

    lasts, read = frames_of(tmp_path / "game.gif")
    assert len(read) == 12
    for i, picture in enumerate(pictures):
        assert np.array_equal(read[i], with_caption(picture, f"step {i}")), i
    assert sum(lasts) == 800  # milliseconds, though no hundredth is a fifteenth
    assert set(lasts) == {60, 70}
    assert [path.name for path in tmp_path.iterdir()] == ["game.gif"]


def test_pictures_that_are_equal_or_too_short_to_be_seen_take_no_place(tmp_path: Path) -> None:
    def blank(value: int) -> Any:
        return np.full((20, 20, 3), value, np.uint8)

    equal, fast = GifFile(tmp_path / "equal.gif", 10), GifFile(tmp_path / "fast.gif", 100)
    for i in range(20):
        equal.show(blank(i // 10), "")
        fast.show(blank(i), "")
    equal.close()
    fast.close()

    found = {name: frames_of(tmp_path / f"{name}.gif") for name in ("equal", "fast")}
    assert {name: (len(frames), sum(lasts)) for name, (lasts, frames) in found.items()} == {
        "equal": (2, 2000),
        "fast": (10, 200),
    }


def test_more_colours_than_a_gif_has_are_brought_near() -> None:
    picture = np.stack([*np.meshgrid(np.arange(64), np.arange(64), indexing="ij"), np.zeros((64, 64))], 2) * 4
    picture = picture.astype(np.uint8)

    near = np.asarray(indexed(picture).convert("RGB")).astype(int)

    assert np.abs(near - picture).mean() < 8


def test_a_file_that_failed_leaves_nothing(tmp_path: Path) -> None:
    gif = GifFile(tmp_path / "game.gif", 15)
    for value in range(3):
        gif.show(np.full((20, 20, 3), value, np.uint8), "")
    gif.close(keep=False)

    assert list(tmp_path.iterdir()) == []


def test_an_mp4_without_ffmpeg_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)

    with pytest.raises(ValueError, match=r"pip install 'fastrl\[video\]', or write a GIF, --to .*game\.gif"):
        Mp4File(tmp_path / "game.mp4", 15)


# The command


def test_it_writes_whole_games_and_tells_what_came_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "uneven.gif"

    succeed("--policy", "random", "--env", small_envs.UNEVEN, "--episodes", "3", "--to", to, "--fps", "10")

    told = capsys.readouterr().out
    steps = [int(found) for found in re.findall(r"game \d: return \d+, (\d+) steps", told)]
    assert len(steps) == 3
    assert f"written: {to}" in told
    _, frames = frames_of(to)
    assert len(frames) == sum(steps) + 3
    last = frames[steps[0]]  # of the first game
    assert last[4, 2 * steps[0] - 2].tolist() == [200, 10 * steps[0], 0]
    assert last[4, 2 * steps[0] + 2].tolist() == [0, 0, 0] if steps[0] < 19 else True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "termnal"], "--to: 'termnal' is unknown; did you mean 'terminal'?; known: terminal, window, and"),
        (["--to", "game.avi"], "known: terminal, window, and files *.gif and *.mp4"),
        (["--to", "no/folder/game.gif"], "a file in a folder that is there"),
        (["--to", "terminal"], "the output is no terminal here"),
        (["--episodes", "0"], "--episodes: 0 is outside"),
        (["--fps", "0"], "--fps: 0.0 is outside (0, 10,000]"),
        (["--epsilon", "2"], "--epsilon: 2.0 is outside [0, 1]"),
        (["--follow"], "--follow: needs a RUN"),
        (["--env", "CartPole-v7"], "neither an Atari game nor an env of Gymnasium"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], said: str) -> None:
    assert said in refusal("--policy", "random", "--env", small_envs.UNEVEN, *arguments)


def test_what_cannot_be_watched_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)

    assert "RUN: give the directory of a run" in refusal()
    assert "is not a directory" in refusal(tmp_path / "nothing", "--follow")
    assert "has no config.json" in refusal(tmp_path)
    assert "has 18 actions by these rules, the policy chooses among 6" in refusal(
        tiny_runs.pong(), "--protocol", "machado", "--to", tmp_path / "x.gif"
    )
    said = refusal("--policy", "random", "--env", small_envs.UNEVEN, "--to", "window")
    assert "there is no display here" in said or "without tkinter" in said
