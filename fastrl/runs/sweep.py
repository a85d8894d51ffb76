"""Which settings of a training are fastest: each is tried in several short rounds, in turn with the others."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastrl.engine.budget import usable_cores
from fastrl.engine.mujoco_tasks import task_ids
from fastrl.engine.recorded_envs import is_atari
from fastrl.runs.trial import TrialFailed

ROUNDS = 3

Settings = dict[str, int]


@dataclass
class Tried:
    """One setting: how fast it was in each round, in steps a second, and why it was not."""

    settings: Settings
    speeds: list[float] = field(default_factory=list)
    failure: str | None = None

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


def try_in_turn(
    try_one: Callable[[Settings], float], settings: Sequence[Settings], say: Callable[[str], None]
) -> list[Tried]:
    """Every setting once a round, every other round in the reverse order; one that failed is not tried again."""
    found = [Tried(one) for one in settings]
    for number in range(ROUNDS):
        for one in found if number % 2 == 0 else reversed(found):
            if one.failure is not None:
                continue
            try:
                one.speeds.append(try_one(one.settings))
            except (TrialFailed, ValueError) as error:
                one.failure = str(error)
        say(f"  round {number + 1} of {ROUNDS} is over")
    for one in found:
        words = f"  {in_words(one.settings):<50}"
        if one.failure is not None:
            say(f"{words}    failed: {one.failure}")
        else:
            say(f"{words}{one.speed:>10,.0f} steps/s  ({min(one.speeds):,.0f} to {max(one.speeds):,.0f})")
    return found


def in_words(settings: Settings) -> str:
    """For a line of text."""
    return "  ".join(f"{name} {value}" for name, value in settings.items())


def fastest(found: Sequence[Tried], own: Settings) -> Tried:
    """The best by its median; but the run's own unless the best was faster in its slowest round than that ever was.

    Raises:
        TrialFailed: all have failed.
    """
    able = [one for one in found if one.failure is None]
    if not able:
        raise TrialFailed("none of these settings came to learning")
    best = max(able, key=lambda one: one.speed)
    kept = next((one for one in able if one.settings == own), best)
    return best if min(best.speeds) > max(kept.speeds) else kept
