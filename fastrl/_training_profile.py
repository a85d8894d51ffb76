"""``fastrl profile --algo``: the parts of a training alone, then together, and the threads that are fastest."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastrl.engine.budget import usable_cores
from fastrl.engine.recorded_envs import is_atari
from fastrl.engine.stage_times import stage_times
from fastrl.runs.asynchronous import make_envs as make_played_envs
from fastrl.runs.ceilings import Stage, ceiling, logging, random_actions, recording
from fastrl.runs.command_line import Trainer
from fastrl.runs.opening import opened
from fastrl.runs.options import resolved
from fastrl.runs.run_dir import machine
from fastrl.runs.trial import Trial, TrialFailed, try_out
from fastrl.runs.tuned import write_tuned

BAR_WIDTH = 30


def recorded_stages(envs: Any, config: Any) -> list[Stage]:
    """What a learner with a replay has its envs do; afterwards the replay has something to draw."""
    rng = np.random.default_rng(0)

    def step() -> None:
        envs.send(random_actions(envs, rng))
        envs.receive()

    envs.start()
    while len(envs.replay) < envs.replay.capacity // 2:
        step()
    where = f"on {config.threads or usable_cores()} threads" if envs.kind == "atari" else "as the run steps them"
    return [
        Stage("emulate", f"{envs.num_envs} envs, random actions, recorded, {where}", step, envs.num_envs),
        recording(envs.replay),
    ]


@contextlib.contextmanager
def dqn_stages(config: Any) -> Iterator[list[Stage]]:
    """Of DQN."""
    from fastrl import dqn
    from fastrl.learn.feeding import make_feeder

    with opened(config, dqn.make_envs, None, False, False) as (envs, _):
        stages = recorded_stages(envs, config)
        learner = dqn.Learner(config, dqn.describe_network(config, envs))
        feeder = make_feeder(
            envs.replay, config.batch, config.n_step, config.discount, learner.device, config.replay_device
        )
        exploration, boundary = np.random.default_rng(1), envs.replay.boundary()

        def feed() -> Any:
            feeder.ask(boundary, 1, config.priority_beta)
            return feeder.take()

        def act() -> None:
            dqn.act(envs, learner, 0.0, exploration)

        batch = feed().tensors
        each = config.update_every_steps
        stages += [
            Stage("act", "the network on every env's stack", act, envs.num_envs),
            Stage("sample", f"a batch of {config.batch}, brought to the learner", feed, each),
            learning(learner, batch, each),
        ]
        try:
            yield stages
        finally:
            feeder.close()


@contextlib.contextmanager
def ddpg_stages(config: Any) -> Iterator[list[Stage]]:
    """Of DDPG."""
    from fastrl import ddpg

    with opened(config, ddpg.make_envs, None, False, False) as (envs, _):
        stages = recorded_stages(envs, config)
        actor, critic = ddpg.describe_networks(config, envs)
        learner, noise = ddpg.Learner(config, actor, critic), ddpg.make_noise(config, actor["action_size"])
        exploration = np.random.default_rng(1)
        buffer = envs.replay.buffer(config.batch)

        def draw() -> Any:
            return envs.replay.sample(config.batch, 1, config.discount, buffer)

        def act() -> None:
            ddpg.act(config, envs, learner, noise, exploration, config.warm_up_steps)

        batch = draw()
        each = config.update_every_steps
        stages += [
            Stage("act", "the network on every env's observation, and noise", act, envs.num_envs),
            Stage("sample", f"a batch of {config.batch}", draw, each),
            learning(learner, batch, each),
        ]
        yield stages


@contextlib.contextmanager
def async_stages(config: Any) -> Iterator[list[Stage]]:
    """Of A3C and asynchronous Q: their workers play and learn in one."""
    envs = make_played_envs(config, config.games_per_worker, "profile", config.threads if config.alone else 1)
    rng = np.random.default_rng(0)
    try:
        envs.start(None)

        def step() -> None:
            envs.step(rng.integers(envs.num_actions, size=config.games_per_worker))

        does = f"{config.games_per_worker} envs of one worker, random actions"
        yield [Stage("emulate", does, step, config.games_per_worker * (1 if config.alone else config.workers))]
    finally:
        envs.close()


def learning(learner: Any, batch: Any, every_steps: int) -> Stage:
    """Updates with one batch again and again."""
    import torch

    def update() -> None:
        learner.update(batch)
        if learner.device.type == "cuda":
            torch.cuda.synchronize()

    return Stage("learn", f"an update every {every_steps} steps", update, every_steps)


_STAGES = {"dqn": dqn_stages, "ddpg": ddpg_stages, "a3c": async_stages, "async_q": async_stages}


def ceilings(trainer: Trainer, config: Any, seconds: float) -> dict[str, tuple[float, str]]:
    """Of each stage, alone: steps a second, and what it is."""
    small = dataclasses.replace(config, **trainer.tried_as(config))
    found = {}
    with (
        tempfile.TemporaryDirectory(prefix="fastrl-profile-") as folder,
        logging(Path(folder), config.log_every_steps, config.tensorboard) as log,
        _STAGES[trainer.algorithm](small) as stages,
    ):
        for stage in [*stages, log]:
            found[stage.name] = ceiling(stage, seconds), stage.does
    if is_atari(config.env):
        inside = stage_times(config.env, config.protocol, steps=500, repeats=1)
        own = 1e6 / inside.own_us
        found["preprocess"] = own, "of emulating: screens to stacks, by one thread"
    return dict(sorted(found.items(), key=lambda item: item[1][0]))


def stage_picture(found: dict[str, tuple[float, str]]) -> list[str]:
    """Bars of the time that each stage takes of a step: the longest is the one to make faster."""
    slowest = min(rate for rate, _ in found.values())
    lines = []
    for name, (rate, does) in found.items():
        filled = "#" * max(1, round(BAR_WIDTH * slowest / rate))
        lines.append(
            f"  {name:<11}{rate:>12,.0f} steps/s {1e6 / rate:>10,.1f} us a step  {filled:<{BAR_WIDTH}}  {does}"
        )
    return lines


def together_lines(trial: Trial, slowest: str, ceiling_per_s: float) -> list[str]:
    """What came of it when all ran at once."""
    shares = sorted(trial.shares.items(), key=lambda item: -item[1])
    where = ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)
    return [
        f"together: {trial.steps_per_s:,.0f} steps/s ({trial.steps_per_s * trial.frames_per_step:,.0f} frames/s, "
        f"{trial.updates_per_s:,.1f} updates/s)",
        f"  the trainer's wall time: {where}",
        f"  the bottleneck is {slowest}: alone it could do {ceiling_per_s:,.0f} steps/s, of which the whole reaches "
        f"{trial.steps_per_s / ceiling_per_s:.0%}",
    ]


def settings_to_try(config: Any, envs: list[int]) -> list[dict[str, int]]:
    """Threads, and the numbers of envs that were asked for."""
    cores = usable_cores()
    counts = sorted({1, max(1, cores // 2), cores})
    if hasattr(config, "workers") and not config.alone:
        sized = [{"workers": count} for count in sorted({*counts, 2 * cores, config.workers})]
        return [{**one, "envs_per_worker": each} for one in sized for each in envs or [config.envs_per_worker]]
    name = "envs_per_worker" if hasattr(config, "workers") else "num_envs"
    sized = [{name: count} for count in envs] or [{}]
    return [{"threads": a, "torch_threads": b, **one} for one in sized for a in counts for b in counts]


def profile_training(trainer: Trainer, config: Any, options: argparse.Namespace) -> None:
    """Measure, tell, and keep the fastest settings where that is asked for."""
    print(f"{trainer.algorithm}, preset {config.preset}, {config.env}, {usable_cores()} usable cores")
    settled = resolved(config)
    found = ceilings(trainer, settled, options.seconds)
    print("each stage alone, as steps of the run a second:")
    print("\n".join(stage_picture(found)), flush=True)
    trial = try_out(trainer, config, options.together_seconds)
    slowest = next(iter(found))
    print("\n".join(together_lines(trial, slowest, found[slowest][0])), flush=True)
    if not options.sweep:
        return
    print("settings, one after the other:")
    best: tuple[float, dict[str, int]] = (0.0, {})
    for settings in settings_to_try(config, options.sweep_envs):
        words = "  ".join(f"{name} {value}" for name, value in settings.items())
        try:
            speed = try_out(trainer, dataclasses.replace(config, **settings), options.together_seconds / 4).steps_per_s
        except (TrialFailed, ValueError) as error:
            print(f"  {words:<50}    failed: {error}", flush=True)
            continue
        best = max(best, (speed, settings), key=lambda one: one[0])
        print(f"  {words:<50}{speed:>10,.0f} steps/s", flush=True)
    speed, settings = best
    if not speed:
        raise TrialFailed("none of these settings came to learning")
    print("fastest:", *(f"--{name.replace('_', '-')} {value}" for name, value in settings.items()))
    if options.output is not None:
        write_tuned(options.output, trainer.algorithm, config.env, machine(), settings)
        print(f"written: {options.output}; take it by --tuned {options.output}")
