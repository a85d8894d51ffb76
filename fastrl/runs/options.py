"""What every run can be told that is not part of an algorithm, and what of it may change when a run is resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastrl.engine.budget import usable_cores
from fastrl.engine.recorded_envs import is_atari
from fastrl.learn.processor import multiplies_bf16

AtariReward = Literal["raw", "sign", "clipped"]
_MOST_TORCH_THREADS = 1024  # OpenMP crashes with a hundred thousand


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options that all trainers share."""

    env: str = "BreakoutNoFrameskip-v4"  # an Atari game (as ale-py names it) or an id of Gymnasium
    seed: int = 0  # of everything random; equal seeds give equal runs
    name: str | None = None  # of the run's directory; default: algorithm, env, seed and time
    runs: Path = Path("runs")  # where runs lie
    device: Literal["auto", "cpu", "cuda"] = "auto"  # that learns; auto: a GPU if there is one
    precision: Literal["auto", "fp32", "bf16"] = "fp32"  # of the networks' products; auto: bf16 where a CPU gains by it
    deterministic: bool | None = None  # equal seeds, equal bits; default: on a CPU, without actor processes
    threads: int | None = None  # that emulate; default: the usable cores
    torch_threads: int | None = None  # that learn on a CPU; default: the usable cores. Changes bits
    log_every_steps: int = 5_000  # a row of metrics.csv
    checkpoint_every_minutes: float = 10.0  # 0: only at the end, and as checkpoint_every_steps says
    checkpoint_every_steps: int | None = None  # as well
    keep_checkpoints: int = 2  # the newest ones; the best one is kept apart
    checkpoint_replay: bool = True  # without: small, but then only --resume-without-replay can go on
    evaluate_every_steps: int = 250_000  # in a process of its own; 0: never
    evaluation_episodes: int = 30  # full games each time
    evaluation_epsilon: float = 0.05  # how often an evaluated policy acts at random
    tensorboard: bool = True  # the numbers of metrics.csv also as TensorBoard events
    histograms: bool = False  # of weights and gradients, to TensorBoard, with every row

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        require_whole(self, "seed", 0, 2**63 - 1)
        for name, most in (("threads", None), ("torch_threads", _MOST_TORCH_THREADS), ("checkpoint_every_steps", None)):
            if getattr(self, name) is not None:
                require_whole(self, name, 1, most)
        for name, least in (
            ("log_every_steps", 1),
            ("keep_checkpoints", 1),
            ("evaluate_every_steps", 0),
            ("evaluation_episodes", 1),
        ):
            require_whole(self, name, least)
        require_number(self, "checkpoint_every_minutes", 0, 1e6)
        require_number(self, "evaluation_epsilon", 0, 1)

    def unrepeatable(self) -> str | None:
        """Why equal seeds do not give equal bits with these options; None: they do."""
        return None

    @property
    def wanted_device(self) -> str:
        """``device``, or what "auto" stands for where that is not a GPU if there is one."""
        return self.device

    @property
    def steps_per_round(self) -> int:
        """Checkpoints are made after multiples of so many steps; 0: nobody knows before."""
        return int(getattr(self, "num_envs", 1))  # envs take their steps together


# What neither shapes learning nor changes bits, so that a resumed run may have it otherwise.
_MAY_CHANGE = {
    "steps",
    "device",
    "replay_device",
    "threads",
    "log_every_steps",
    "checkpoint_every_minutes",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "checkpoint_replay",
    "evaluate_every_steps",
    "evaluation_episodes",
    "tensorboard",
    "histograms",
    "runs",
    "name",
}


def refuse_changes(stored: Any, asked: Any) -> None:
    """Raise if ``asked`` differs from ``stored`` in anything that a resumed run cannot change."""
    for field in dataclasses.fields(stored):
        before, now = getattr(stored, field.name), getattr(asked, field.name)
        if before != now and field.name not in _MAY_CHANGE:
            raise ValueError(
                f"resume: {field.name} was {before!r} and cannot become {now!r}, since the run would be another one; "
                f"start a new run for that (may change: {', '.join(sorted(_MAY_CHANGE))})"
            )


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of a configuration, as JSON, has changed that a resumed run cannot change, a text each.

    A setting that only one of them has is of another version, and no change.
    """
    return [
        f"{name} was {before[name]!r} and is {now[name]!r}"
        for name in before
        if name in now and before[name] != now[name] and name not in _MAY_CHANGE
    ]


def learns_on_gpu(options: Any) -> bool:
    """Whether a run with these options would, on this machine."""
    import torch

    return options.wanted_device != "cpu" and torch.cuda.is_available()


def resolved(options: Any) -> Any:
    """``options`` with everything that the machine decides filled in."""
    import torch

    from fastrl.learn.networks import CONVOLUTIONAL

    cuda = torch.cuda.is_available()
    device = options.device
    if device == "auto":
        device = "cuda" if cuda else "cpu"
    if device == "cuda" and not cuda:
        raise ValueError("device: 'cuda' was asked for, but torch finds no GPU here; use --device cpu or auto")
    precision = options.precision
    if precision == "auto":
        # Networks without convolutions gain nothing, those of a user's own may not bear it, and no GPU was tried.
        gains = device == "cpu" and options.network in CONVOLUTIONAL
        precision = "bf16" if gains and multiplies_bf16() else "fp32"
    cores = usable_cores()
    can_repeat = device == "cpu" and options.unrepeatable() is None
    return dataclasses.replace(
        options,
        device=device,
        precision=precision,
        deterministic=can_repeat if options.deterministic is None else options.deterministic,
        torch_threads=cores if options.torch_threads is None else options.torch_threads,
    )


def told(options: Any) -> str:
    """What the machine decided, of resolved options, in a line."""
    where = "CPU" if options.device == "cpu" else "GPU"
    bits = "equal seeds give equal bits" if options.deterministic else "equal seeds do not give equal bits"
    return f"learns on the {where}, products in {options.precision}; {bits} (--device, --precision, --deterministic)"


def require_whole(config: Any, name: str, least: int, most: int | None = None) -> None:
    """Raise unless the field is a whole number in [least, most]."""
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        raise ValueError(f"{name}: {value!r} is not a whole number in [{least}, {'...' if most is None else most}]")


def require_atari_reward(config: Any) -> None:
    """Raise if rules for an Atari game's rewards are given for another env."""
    if config.reward is not None and not is_atari(config.env):
        raise ValueError(f"reward: '{config.reward}' is a rule of Atari games, and {config.env} is none; leave it out")


def require_room_for_a_batch(config: Any) -> None:
    """Raise if a batch is larger than the replay that it is drawn from."""
    if config.batch > config.replay_capacity:
        raise ValueError(
            f"batch: {config.batch:,} transitions are more than the replay holds; give at most replay_capacity, which "
            f"is {config.replay_capacity:,}"
        )


def require_layers(config: Any, name: str) -> None:
    """Raise unless the field says of each hidden layer how many units it has."""
    units = getattr(config, name)
    whole = isinstance(units, (tuple, list)) and all(type(each) is int and each >= 1 for each in units)
    if not whole:
        raise ValueError(f"{name}: {units!r} are not whole numbers from 1 on, one for each layer")


def require_number(config: Any, name: str, least: float, most: float) -> None:
    """Raise unless the field is a number in [least, most]."""
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (least <= value <= most):
        raise ValueError(f"{name}: {value!r} is outside [{least}, {most}]")
