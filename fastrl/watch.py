"""Watch a policy play: in the terminal, in a window, or as an MP4 or GIF; a live run too, as it learns."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy.typing as npt
import torch
from gymnasium import spaces

from fastrl._command import run
from fastrl.engine.files import DamagedFile
from fastrl.engine.games import nearest
from fastrl.engine.rules import whole_number
from fastrl.runs import seeds
from fastrl.runs.checkpoint import CheckpointStore
from fastrl.runs.run_dir import RunDir
from fastrl.runs.shown_game import Picture, ShownGame, shown_game
from fastrl.runs.stop import StopSignals
from fastrl.runs.subject import Subject, add_options, find_subject
from fastrl.runs.trained import TrainedPolicy, load

_FILES = (".gif", ".mp4")
_LOOK_EVERY_S = 1.0  # for a newer checkpoint
_LONGEST_SLEEP_S = 0.2  # a signal is answered that soon

Choose = Callable[[npt.NDArray[Any]], tuple[Any, float | None]]


class Screen(Protocol):
    """Where pictures are shown."""

    live: bool  # somebody looks now, so time matters
    closed: bool  # by whoever looked

    def show(self, picture: Picture, caption: str) -> None:
        """Show the next picture."""

    def close(self, keep: bool = True) -> None:
        """Show no more. ``keep`` what was made, if that is a file."""


def open_screen(to: str, title: str, aspect: float | None, pictures_per_s: float) -> Screen:
    """Where ``--to`` says."""
    if to == "terminal":
        from fastrl.runs.terminal_screen import TerminalScreen

        return TerminalScreen(aspect)
    if to == "window":
        from fastrl.runs.window_screen import WindowScreen

        return WindowScreen(title, aspect)
    from fastrl.runs.video_files import GifFile, Mp4File

    path = Path(to)
    return GifFile(path, pictures_per_s) if path.suffix == ".gif" else Mp4File(path, pictures_per_s)


def require_known(to: str) -> None:
    """Raise unless ``--to`` can be meant."""
    if to not in ("terminal", "window") and Path(to).suffix not in _FILES:
        hint = nearest(to, ["terminal", "window"])
        raise ValueError(f"--to: '{to}' is unknown{hint}; known: terminal, window, and files *.gif and *.mp4")


class Chooser:
    """What to do, and what the policy thinks of it.

    Args:
        chosen: who plays.
        space: of the env's actions.
    """

    def __init__(self, chosen: Subject, space: spaces.Space[Any]) -> None:
        self.trained, self._epsilon, self._space = chosen.trained, chosen.epsilon, space
        self._first = int(space.start) if isinstance(space, spaces.Discrete) else 0
        self._generator = seeds.generator(chosen.seed, "evaluation actions")
        space.seed(seeds.whole(chosen.seed, "evaluation actions"))

    def __call__(self, obs: npt.NDArray[Any]) -> tuple[Any, float | None]:
        """An action of the env, and its value; None where nobody has put one on it."""
        if self.trained is None:
            return self._space.sample(), None
        values = self.trained.values(obs)
        action = self.trained.policy.choose(values, self._epsilon, self._generator)[0]
        if not isinstance(self._space, spaces.Discrete):
            return action, None
        greedy = self.trained.policy.acts == "greedy"  # others have logits, which are no values
        return int(action) + self._first, float(values[0, action]) if greedy else None


class Follower:
    """Looks for newer weights of a live run, now and then."""

    def __init__(self, reload: Callable[[], TrainedPolicy], chooser: Chooser) -> None:
        assert chooser.trained is not None
        self._reload, self._chooser = reload, chooser
        self._store = CheckpointStore(chooser.trained.run.checkpoints)
        self._next_s = time.perf_counter() + _LOOK_EVERY_S

    def look(self) -> None:
        """Take the newest weights if there are newer ones."""
        if time.perf_counter() < self._next_s:
            return
        self._next_s = time.perf_counter() + _LOOK_EVERY_S
        assert self._chooser.trained is not None
        if self._store.steps_saved()[:1] != [self._chooser.trained.steps]:
            with contextlib.suppress(DamagedFile, ValueError):  # being replaced right now: the next look finds it
                self._chooser.trained = self._reload()


class Pace:
    """Lets steps take as long as they would."""

    def __init__(self, seconds: float, stop: Callable[[], bool]) -> None:
        self._seconds, self._stop = seconds, stop
        self._next_s = time.perf_counter()

    def wait(self) -> None:
        """Until the next picture is due. Who is late does not hurry afterwards."""
        self._next_s = max(self._next_s + self._seconds, time.perf_counter() - self._seconds)
        while (left := self._next_s - time.perf_counter()) > 0 and not self._stop():
            time.sleep(min(left, _LONGEST_SLEEP_S))


def play(
    game: ShownGame,
    choose: Choose,
    screen: Screen,
    *,
    episodes: int | None,
    before_picture: Callable[[], list[str]],
    ended: Callable[[], bool],
) -> Iterator[tuple[float, int]]:
    """Play and show; gives return and steps of each game that was played to its end.

    Args:
        game: what is played.
        choose: an action and its value.
        screen: where.
        episodes: how many games; None: until ``ended``.
        before_picture: is called before each, and waits; what it gives ends the caption.
        ended: whether to stop in the middle.
    """
    number = 0
    while episodes is None or number < episodes:
        number += 1
        obs, over, total, steps = game.reset(), False, 0.0, 0
        screen.show(game.picture(), " | ".join([f"game {number}", *before_picture()]))
        while not over:
            if ended() or screen.closed:
                return
            action, value = choose(obs)
            obs, reward, over = game.step(action)
            total, steps = total + reward, steps + 1
            told = [f"game {number}", f"return {total:g}", f"step {steps}", game.action_name(action)]
            told += [] if value is None else [f"Q {value:.3f}"]
            screen.show(game.picture(), " | ".join([*told, *before_picture()]))
        yield total, steps


def wait_for_checkpoint(run: Path, ended: Callable[[], bool]) -> None:
    """Until a live run has saved something."""
    store = CheckpointStore(RunDir.open(run).checkpoints)
    if not store.steps_saved():
        print(f"{run} has no checkpoint yet; waiting for the first one (Ctrl-C ends)", flush=True)
    while not store.steps_saved() and not ended():
        time.sleep(_LONGEST_SLEEP_S)


def watch(arguments: argparse.Namespace) -> int:
    """Check, play, show; the exit code."""
    require_known(arguments.to)
    if arguments.episodes is not None:
        whole_number("--episodes", arguments.episodes, 1, 1_000_000)
    if arguments.fps is not None and not 0 < arguments.fps <= 10_000:
        raise ValueError(f"--fps: {arguments.fps} is outside (0, 10,000]")
    if arguments.follow and (arguments.run is None or arguments.policy == "random"):
        raise ValueError("--follow: needs a RUN whose weights change; random play has none")
    torch.set_num_threads(1)
    with StopSignals() as stop:

        def ended() -> bool:
            return stop.requested

        if arguments.follow:
            arguments.checkpoint = "latest"
            wait_for_checkpoint(arguments.run, ended)
            if stop.requested:
                return stop.exit_code
        chosen = find_subject(arguments, "watch")
        game = shown_game(chosen.env, chosen.rules, chosen.seed)
        try:
            _watch(arguments, chosen, game, ended)
        finally:
            game.close()
        return stop.exit_code


def _watch(arguments: argparse.Namespace, chosen: Subject, game: ShownGame, ended: Callable[[], bool]) -> None:
    chosen.require_actions(game.action_space)
    chooser = Chooser(chosen, game.action_space)
    pictures_per_s = (arguments.fps or game.frames_per_s) / game.frames_per_step
    follower = None
    if arguments.follow:

        def reload() -> TrainedPolicy:
            return load(
                arguments.run, "latest", arguments.device, arguments.network, env=arguments.env, note=lambda _: None
            )

        follower = Follower(reload, chooser)
    episodes = 1 if arguments.episodes is None and follower is None else arguments.episodes
    screen = open_screen(arguments.to, f"fastrl watch: {chosen.env}", game.aspect, pictures_per_s)
    pace = Pace(1 / pictures_per_s, ended)

    def before_picture() -> list[str]:
        if screen.live:
            pace.wait()
        if follower is None or chooser.trained is None:
            return []
        follower.look()
        return [f"weights of {chooser.trained.steps:,} steps"]

    games, keep = [], False
    try:
        for result in play(game, chooser, screen, episodes=episodes, before_picture=before_picture, ended=ended):
            games.append(result)
        keep = True  # also of a game that was stopped: what there is can be watched
    finally:
        screen.close(keep)
    print(f"{chosen.words}{'' if chosen.trained is None else f', epsilon {chosen.epsilon:g}'}, seed {arguments.seed}")
    for number, (total, steps) in enumerate(games, 1):
        print(f"game {number}: return {total:g}, {steps:,} steps")
    if follower is not None and chooser.trained is not None:
        print(f"the last weights were of {chooser.trained.steps:,} steps")
    if ended() or screen.closed:
        print(f"stopped after {len(games)} whole games")
    if not screen.live:
        print(f"written: {arguments.to}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="fastrl watch", description=__doc__)
    add_options(parser)
    parser.add_argument("--episodes", type=int, help="full games (default: 1; with --follow: until Ctrl-C)")
    parser.add_argument("--to", default="terminal", help="terminal, window, FILE.gif or FILE.mp4 (default: terminal)")
    parser.add_argument("--fps", type=float, help="frames a second, not steps (default: 60, or what the env says)")
    parser.add_argument("--follow", action="store_true", help="take the newest weights whenever a live run has saved")
    try:
        code = watch(parser.parse_args(arguments))
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, TypeError, OSError, MemoryError, ImportError, gymnasium.error.Error) as error:
        sys.exit(f"fastrl watch: {error}")
    sys.exit(code)


if __name__ == "__main__":
    run(main)
