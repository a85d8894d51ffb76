"""Which settings of a training are fastest: each is tried in several short rounds, in turn with the others."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastrl.engine.budget import usable_cores
from fastrl.engine.mujoco_tasks import task_ids
from fastrl.engine.recorded_envs import is_atari
from fastrl.runs.trial import TrialFailed
from fastrl.runs.units import duration

ROUNDS = 3
# A setting whose median is below this share of the slowest round of the fastest is not tried on.
PLAINLY_SLOWER = 0.7
# For a setting's first rows: times what the run's own took, and seconds at the least, for machines have busy moments.
_PATIENCE, _LEAST_PATIENCE_S = 3.0, 60.0

Settings = dict[str, int]


@dataclass
class Tried:
    """One setting: how fast it was in each round, in steps a second, and why it was not."""

    settings: Settings
    speeds: list[float] = field(default_factory=list)
    failure: str | None = None
    given_up: bool = False  # it is plainly slower than another

    @property
    def speed(self) -> float:
        """The median."""
        return statistics.median(self.speeds)


def named_envs(config: Any) -> str:
    """The option that says how many envs there are."""
    return "envs_per_worker" if hasattr(config, "workers") else "num_envs"


def has_worker_processes(config: Any) -> bool:
    """Whether it is workers that share the cores, with a thread each."""
    return hasattr(config, "workers") and not config.alone


def own_settings(config: Any, with_envs: bool = False) -> Settings:
    """What the run itself says about what is tried, so that the others can be compared with it."""
    name, cores = named_envs(config), usable_cores()
    envs = {name: getattr(config, name)}
    if has_worker_processes(config):
        return {"workers": config.workers, **envs}
    threads = {"threads": config.threads or cores} if _threads_matter(config) else {}
    return {**threads, "torch_threads": config.torch_threads or cores, **(envs if with_envs else {})}


def _threads_matter(config: Any) -> bool:
    """Gymnasium's own envs take their steps one after the other, whatever ``threads`` says."""
    return is_atari(config.env) or config.env in task_ids()


def settings_to_try(config: Any, envs: Sequence[int]) -> list[Settings]:
    """The run's own, then threads or workers, each with all the numbers of envs that were asked for."""
    cores = usable_cores()
    counts = sorted({1, max(1, cores // 2), cores})
    if has_worker_processes(config):
        grid: list[Settings] = [{"workers": count} for count in sorted({*counts, 2 * cores, config.workers})]
        envs = envs or [config.envs_per_worker]
    else:
        grid = [{"torch_threads": count} for count in counts]
        if _threads_matter(config):
            grid = [{"threads": count, **one} for count in counts for one in grid]
    sized: list[Settings] = [{named_envs(config): count} for count in envs] or [{}]
    own = own_settings(config, with_envs=bool(envs))
    return [own, *(found for size in sized for one in grid if (found := {**one, **size}) != own)]


def other_envs(config: Any) -> list[int]:
    """A few around the run's own, where threads and products gain by more envs and the rules allow them."""
    if not is_atari(config.env) or getattr(config, "steps_per_round", 1) == 0:  # whole episodes are of one game
        return []
    own = getattr(config, named_envs(config))
    return [own // 2, 2 * own] if own > 1 else [2, 4]  # few: each trial begins as a run does


@dataclass(frozen=True)
class Pace:
    """What a trial takes, as one with the run's own settings showed."""

    seconds: float  # of learning, that are asked for
    learning_s: float  # that come of it
    beside_s: float  # of its start, its warm-up and its end

    @property
    def trial_s(self) -> float:
        """In all."""
        return self.learning_s + self.beside_s

    @property
    def patience_s(self) -> float:
        """Of learning: what made no rows by then is plainly slower than the run's own."""
        return max(_LEAST_PATIENCE_S, _PATIENCE * self.learning_s)


def forecast(config: Any, asked_envs: Sequence[int], pace: Pace, most_s: float) -> str:
    """How long a sweep will take, before it does."""
    trials = ROUNDS * len(settings_to_try(config, asked_envs))
    more = [] if asked_envs else other_envs(config)
    of_envs = ROUNDS * (1 + len(more)) if more else 0
    whole_s = (trials + of_envs) * pace.trial_s
    then = f", then {of_envs} with other numbers of envs" if of_envs else ""
    ends = (
        f"about {duration(whole_s)}" if whole_s <= most_s else f"{duration(most_s)} of the {duration(whole_s)} it needs"
    )
    return (
        f"sweep: {trials} trials of about {pace.trial_s:.0f} s ({pace.learning_s:.3g} s of learning){then}: {ends}, "
        f"less where settings are plainly slower than others; none begins after {duration(most_s)} (--sweep-minutes)"
    )


def try_in_turn(
    try_one: Callable[[Settings], float],
    settings: Sequence[Settings],
    say: Callable[[str], None],
    *,
    until: float = math.inf,
    now: Callable[[], float] = time.monotonic,
) -> list[Tried]:
    """Every setting once a round, every other round in the reverse order.

    One that failed, or is plainly slower than another, is not tried again; but the first one is, which the others are
    compared with. It ends when no other is left, or when the time is over.

    Args:
        try_one: says how many steps a second a setting makes.
        settings: the run's own first.
        say: is told what is going on.
        until: no trial begins from then on.
        now: what time it is.
    """
    found = [Tried(one) for one in settings]
    began, over, trials = now(), False, 0
    for number in range(ROUNDS):
        going_on = [one for one in found if one.failure is None and not one.given_up]
        if number and going_on in ([], found[:1]):
            say("  no other is left to be compared with the run's own")
            break
        for one in going_on if number % 2 == 0 else reversed(going_on):
            if over := now() >= until:
                break
            try:
                one.speeds.append(try_one(one.settings))
            except (TrialFailed, ValueError) as error:
                one.failure = str(error)
        if over:
            say(f"  the time is over, in round {number + 1} of {ROUNDS}")
            break
        _give_up(found)
        left = sum(one.failure is None and not one.given_up for one in found)
        took_s, trials = now() - began, trials + len(going_on)
        line = f"  round {number + 1} of {ROUNDS} is over after {duration(took_s)}"
        if number + 1 < ROUNDS:
            line += (
                f"; {left} of {len(found)} go on, for about {duration((ROUNDS - number - 1) * left * took_s / trials)}"
            )
        say(line)
    for one in found:
        words = f"  {in_words(one.settings):<40}"
        if one.failure is not None:
            say(f"{words} failed: {one.failure}")
        elif not one.speeds:
            one.failure = "not tried, for the time was over"
            say(f"{words} {one.failure}")
        else:
            range_of = f"({min(one.speeds):,.0f} to {max(one.speeds):,.0f})"
            say(f"{words}{one.speed:>9,.0f} steps/s  {'plainly slower' if one.given_up else range_of}")
    return found


def _give_up(found: Sequence[Tried]) -> None:
    able = [one for one in found if one.failure is None and one.speeds]
    if able:
        enough = PLAINLY_SLOWER * min(max(able, key=lambda one: one.speed).speeds)
        for one in able:
            one.given_up |= one is not found[0] and one.speed < enough


def in_words(settings: Settings) -> str:
    """For a line of text."""
    return "  ".join(f"{name} {value}" for name, value in settings.items())


def fastest(found: Sequence[Tried], own: Settings) -> Tried:
    """The best by its median; but the run's own unless the best was faster in its slowest round than that ever was.

    Raises:
        TrialFailed: all have failed.
    """
    able = [one for one in found if one.failure is None and not one.given_up]
    if not able:
        raise TrialFailed("none of these settings came to learning")
    best = max(able, key=lambda one: one.speed)
    kept = next((one for one in able if one.settings == own), best)
    return best if min(best.speeds) > max(kept.speeds) else kept
