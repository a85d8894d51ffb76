"""How a training begins: anew or from a checkpoint, with its envs, and with a replay that has something to draw."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from gymnasium import spaces

from fastrl.engine.recorded_envs import is_atari
from fastrl.engine.replay import Replay
from fastrl.runs import seeds
from fastrl.runs.session import Resumed, Session, resume, torch_threads

_LARGE_CAPACITY = 100_000  # of frames: 0.7 GB


class _Envs(Protocol):
    def close(self) -> None: ...


_SomeEnvs = TypeVar("_SomeEnvs", bound=_Envs)


@contextlib.contextmanager
def opened(
    config: Any,
    make_envs: Callable[[Any, Resumed | None], _SomeEnvs],
    resume_run: Path | None,
    without_replay: bool,
    accept_changed_bits: bool,
) -> Iterator[tuple[_SomeEnvs, Resumed | None]]:
    """The envs, closed at the end, and what a run goes on from; meanwhile torch has its threads."""
    resumed = None
    if resume_run is not None:
        resumed = resume(resume_run, without_replay=without_replay, accept_changed_bits=accept_changed_bits)
    _say_what_takes_long(config)
    envs = make_envs(config, resumed)
    try:
        with torch_threads(config.torch_threads or 1):
            yield envs, resumed
    finally:
        envs.close()


def _say_what_takes_long(config: Any) -> None:
    """Gigabytes of frames are had from the machine up front, so that none is missing later."""
    capacity = getattr(config, "replay_capacity", 0)
    if is_atari(config.env) and (capacity == "auto" or capacity >= _LARGE_CAPACITY):
        steps = capacity if capacity == "auto" else f"{capacity:,}"
        print(f"making a replay of {steps} steps: all its memory is taken now, which can take a while", flush=True)


def envs_seed(config: Any, resumed: Resumed | None) -> int:
    """Of the envs: episodes that begin when a run goes on are not those that it began with."""
    return seeds.whole(config.seed, "envs" if resumed is None else f"envs from step {resumed.checkpoint.steps}")


def refusal_of_choices(actions: spaces.Space[Any]) -> str | None:
    """What who chooses among a number of actions says of others; None if these are such."""
    if isinstance(actions, spaces.Discrete):
        return None
    return (
        "a number of actions to choose from (Discrete) is needed; fastrl ddpg takes a Box with bounds, and "
        "gymnasium.wrappers.TransformAction can make either of others (register the wrapped env under an id of its own)"
    )


def refill(config: Any, replay: Replay, session: Session, play: Callable[[], None]) -> None:
    """``play`` until there is as much in the replay as the first update had. No step is counted."""
    wanted = min(max(config.warm_up_steps, config.batch), replay.capacity // 2)
    session.note(f"the checkpoint has no replay: acting for {wanted:,} steps, which are not counted, to fill a new one")
    while len(replay) < wanted and session.running():
        play()
