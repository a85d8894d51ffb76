"""``fastrl profile --algo``: the parts of a training alone, then together, and the settings that are fastest."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastrl.engine.budget import usable_cores
from fastrl.engine.games import find_game
from fastrl.engine.recorded_envs import is_atari
from fastrl.engine.rules import resolved_protocol
from fastrl.engine.stage_times import stage_times
from fastrl.runs.async_worker import ProcessWorker
from fastrl.runs.asynchronous import Recipe, emulating_threads, placed
from fastrl.runs.asynchronous import make_envs as make_played_envs
from fastrl.runs.ceilings import (
    Alone,
    Stage,
    ceiling,
    logging,
    random_actions,
    recording,
    synchronised,
    transferring,
)
from fastrl.runs.command_line import Trainer
from fastrl.runs.opening import opened
from fastrl.runs.options import resolved
from fastrl.runs.run_dir import machine
from fastrl.runs.session import torch_threads
from fastrl.runs.stage_table import StageTable, columns, folded, legend
from fastrl.runs.sweep import (
    ROUNDS,
    Pace,
    Settings,
    fastest,
    forecast,
    has_worker_processes,
    named_envs,
    other_envs,
    settings_to_try,
    try_in_turn,
)
from fastrl.runs.trial import Trial, learning_for_s, try_out
from fastrl.runs.tuned import write_tuned
from fastrl.runs.worker_rounds import WorkerRounds


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
        exploration = np.random.default_rng(1)

        def draw() -> Any:
            feeder.ask(envs.replay.boundary(), 1, config.priority_beta)
            return feeder.draw()

        def act() -> None:
            dqn.act(envs, learner, 0.0, exploration)

        # What it takes to get there, and, on a CPU, what every look of the network begins with.
        looks = ("obs", "next_obs", "next_obs") if config.double else ("obs", "next_obs")
        scaled, kind = converter(learner.online, config)
        on_cpu = learner.device.type == "cpu"

        def bring(drawn: Any) -> Any:
            fed = feeder.transfer(drawn)
            if on_cpu and scaled is not None:
                for name in looks:
                    scaled(fed.tensors[name], kind)
            return fed

        bring = synchronised(bring, learner.device)
        batch = feeder.transfer(draw()).tensors
        each = config.update_every_steps
        made = "floats" if scaled is not None else "tensors"
        does = f"as {made}, a part of learn" if on_cpu else f"to {learner.device}"
        stages += [
            Stage("act", "the network on every env's stack", act, envs.num_envs),
            Stage("sample", f"a batch of {config.batch} out of the replay", draw, each),
            transferring(draw, bring, f"of a batch: {does}", steps=each, part_of="learn" if on_cpu else None),
            learning(lambda: learner.update(batch), learner, each),
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

        bring = synchronised(learner.transfer, learner.device)
        bring(draw())
        each = config.update_every_steps
        does = "as tensors" if learner.device.type == "cpu" else f"to {learner.device}"
        stages += [
            Stage("act", "the network on every env's observation, and noise", act, envs.num_envs),
            Stage("sample", f"a batch of {config.batch} out of the replay", draw, each),
            transferring(draw, bring, f"of a batch: {does}", steps=each),
            learning(learner.learn, learner, each),
        ]
        yield stages


@contextlib.contextmanager
def async_stages(config: Any) -> Iterator[list[Stage]]:
    """Of A3C and asynchronous Q: what one worker does, as many times as workers can do it side by side."""
    recipe: Recipe = importlib.import_module(config.__class__.__module__).RECIPE
    threads, games = emulating_threads(config), config.games_per_worker
    torch_count = 1 if has_worker_processes(config) and config.device == "cpu" else config.torch_threads
    rng = np.random.default_rng(0)
    envs = make_played_envs(config, games, "profile", threads)
    try:
        with torch_threads(torch_count):
            rounds = WorkerRounds(recipe, config, envs)

            def step() -> None:
                envs.step(rng.integers(envs.num_actions, size=games))

            emulating, learning = side_by_side(config)
            by = f"{games} env{'s' if games > 1 else ''} of a worker"
            at_once = f"{emulating} worker{'s' if emulating > 1 else ''} at once"
            back = "a round's targets and way back, and the step of what all share"
            yield [
                Stage("emulate", f"{by}, random actions; {at_once}", step, emulating * games),
                Stage(
                    "act",
                    f"taking the shared weights; the network on {by}",
                    rounds.play,
                    learning,
                    lambda: rounds.acting_s,
                ),
                Stage("learn", back, rounds.play, learning, lambda: rounds.learning_s),
                showing(rounds.worker, config, learning * games),
            ]
    finally:
        envs.close()


def showing(worker: Any, config: Any, steps: int) -> Stage:
    """Bringing what all games of a worker show to its network."""
    import torch

    if isinstance(worker, ProcessWorker):
        scaled, kind = converter(worker.local.network, config)

        def convert() -> None:
            obs = torch.from_numpy(worker.obs)
            if scaled is not None:
                scaled(obs, kind)

        made = "floats" if scaled is not None else "tensors"
        return Stage("transfer", f"of observations: as {made}, a part of act", convert, steps, part_of="act")
    show = synchronised(lambda: worker.round.show(0, worker.obs), worker.device)
    return Stage("transfer", f"of observations: to {worker.device}, a part of act", show, steps, part_of="act")


def side_by_side(config: Any) -> tuple[int, int]:
    """How many workers can emulate at once, and how many can act or learn."""
    if not has_worker_processes(config):
        return 1, 1
    cores = usable_cores()
    if config.device == "cpu":
        return (min(config.workers, cores),) * 2
    # Groups of games on a GPU: one thread goes from one to the next, the threads of their games go on meanwhile.
    return max(1, min(config.workers, cores // (emulating_threads(config) or cores))), 1


def learning(update: Callable[[], None], learner: Any, every_steps: int) -> Stage:
    """Updates with one batch again and again."""
    often = f"every {every_steps} steps" if every_steps > 1 else "each step"
    return Stage("learn", f"an update {often}", synchronised(update, learner.device), every_steps)


def converter(network: Any, config: Any) -> tuple[Callable[[Any, Any], Any] | None, Any]:
    """What makes numbers of a network's observations, and of which kind; None: a user's own does so in its own way."""
    import torch

    return getattr(network, "scaled", None), torch.bfloat16 if config.precision == "bf16" else torch.float32


_STAGES = {"dqn": dqn_stages, "ddpg": ddpg_stages, "a3c": async_stages, "async_q": async_stages}
_OF_TOGETHER = 4  # a setting is tried for a quarter of what all stages together are, in all rounds
_WAITING = "wait for workers"  # the trainer's name for what it does while they do everything


def settled(config: Any) -> Any:
    """``config`` with everything that the machine decides, as its trainer has it."""
    return placed(config) if hasattr(config, "workers") else resolved(config)


def ceilings(trainer: Trainer, config: Any, seconds: float) -> dict[str, Alone]:
    """What each stage could do alone, the slowest first."""
    small = dataclasses.replace(config, **trainer.tried_as(config))
    found = {}
    with (
        tempfile.TemporaryDirectory(prefix="fastrl-profile-") as folder,
        logging(Path(folder), config.log_every_steps, config.tensorboard) as log,
        _STAGES[trainer.algorithm](small) as stages,
    ):
        for stage in [*stages, log]:
            found[stage.name] = Alone(ceiling(stage, seconds), stage.does, stage.part_of)
    if is_atari(config.env):
        inside = stage_times(config.env, config.protocol, steps=500, repeats=1)
        threads = preprocessing_threads(config)
        does = f"screens to stacks, by {threads} thread{'s' if threads > 1 else ''}, a part of emulate"
        found["preprocess"] = Alone(threads * 1e6 / inside.own_us, does, "emulate")
    return dict(sorted(found.items(), key=lambda item: item[1].steps_per_s))


def frames_of_a_step(config: Any) -> int:
    """By the game's rules."""
    if not is_atari(config.env):
        return 1
    return resolved_protocol(config.protocol, find_game(config.env).sticky).frame_skip


def updates_of_a_step(config: Any) -> float | None:
    """None: nobody knows before, for a round is a whole episode."""
    steps: int = config.steps_per_round if hasattr(config, "workers") else config.update_every_steps
    return 1 / steps if steps else None


def preprocessing_threads(config: Any) -> int:
    """That emulate, and work on the screens: no more than there are envs, or cores."""
    cores = usable_cores()
    if has_worker_processes(config) and config.device == "cpu":
        return side_by_side(config)[0]
    envs = config.envs_per_worker * config.workers if hasattr(config, "workers") else config.num_envs
    return int(min(config.threads or cores, envs, cores))


def table_for(config: Any) -> StageTable:
    """As wide as the terminal."""
    return StageTable(frames_of_a_step(config), updates_of_a_step(config), columns())


@dataclasses.dataclass(frozen=True)
class Round:
    """What workers do one after the other, all of them alike: its stages by their shares, the longest first."""

    shares: dict[str, float]
    steps_per_s: float  # of as many workers as run side by side


def round_of(config: Any, found: dict[str, Alone]) -> Round | None:
    """The rounds of A3C and asynchronous Q on a CPU; None: the stages of this training overlap."""
    if not hasattr(config, "workers") or config.device != "cpu":
        return None
    each_s = {name: 1 / found[name].steps_per_s for name in ("emulate", "act", "learn")}
    whole_s = sum(each_s.values())
    longest_first = sorted(each_s.items(), key=lambda item: -item[1])
    return Round({name: part_s / whole_s for name, part_s in longest_first}, 1 / whole_s)


def round_line(config: Any, made_of: Round) -> str:
    """What a worker's round is made of."""
    parts = ", ".join(f"{name} {share:.0%}" for name, share in made_of.shares.items())
    count = 1 if config.alone else config.workers
    who = "one worker" if count == 1 else f"{count} workers on {usable_cores()} usable cores"
    return f"a worker's round, one stage after the other: {parts}; {who} could do {made_of.steps_per_s:,.0f} steps/s"


def together_lines(trial: Trial, found: dict[str, Alone], made_of: Round | None) -> list[str]:
    """Where the time went when all ran at once, and what limits it."""
    shares = sorted(trial.shares.items(), key=lambda item: -item[1])
    where = ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005 and name != _WAITING)
    waits = f"waits for its workers {trial.shares[_WAITING]:.0%}; " if _WAITING in trial.shares else ""
    # Parts are judged with what they are part of; what a round is made of is judged as a whole.
    limits = {name: alone.steps_per_s for name, alone in found.items() if alone.part_of is None}
    part_of = ""
    if made_of is not None:
        limits = {name: rate for name, rate in limits.items() if name not in made_of.shares}
        longest, share = next(iter(made_of.shares.items()))
        limits[longest] = made_of.steps_per_s
        part_of = f"{share:.0%} of a worker's round; rounds by themselves"
    slowest = min(limits, key=lambda name: limits[name])
    alone = part_of if made_of is not None and slowest in made_of.shares else "alone it"
    return [
        f"the trainer's wall time: {waits}{where}",
        f"the bottleneck is {slowest}: {alone} could do {limits[slowest]:,.0f} steps/s, of which the whole "
        f"reaches {trial.steps_per_s / limits[slowest]:.0%}",
    ]


def _tried(trainer: Trainer, config: Any, seconds: float, **limits: float) -> Trial:
    """A trial of the training alone: what evaluations take is told by `fastrl plan`."""
    return try_out(trainer, dataclasses.replace(config, evaluate_every_steps=0), seconds, **limits)


def find_settings(trainer: Trainer, config: Any, asked_envs: list[int], pace: Pace, most_s: float) -> Settings:
    """The fastest settings; other numbers of envs than the run's own are among them only if they were asked for."""
    until = time.monotonic() + most_s

    # What others are compared with is waited for as long as ever, since a busy moment must not end it all.
    compared: list[Settings] = []

    def try_one(settings: Settings) -> float:
        limits = {} if settings in compared else {"rows_within_s": pace.patience_s}
        return _tried(trainer, dataclasses.replace(config, **settings), pace.seconds, **limits).steps_per_s

    def say(line: str) -> None:
        print("\n".join(folded(line, columns())), flush=True)

    settings = settings_to_try(config, asked_envs)
    own, name = settings[0], named_envs(config)
    compared.append(own)
    shown = name.replace("_", "-")
    say(forecast(config, asked_envs, pace, most_s))
    best = fastest(try_in_turn(try_one, settings, say, until=until), own)
    if best.settings == own:
        say("no other was faster than the run's own beyond what rounds of one differ by")
    shapes = f"note: --{shown}{' and --workers' if 'workers' in own else ''} shape what is learned, not the speed only"
    if asked_envs or "workers" in own:
        say(shapes)
    others = [] if asked_envs else other_envs(config)
    if others and time.monotonic() >= until:
        say("no time is left for other numbers of envs (--sweep-minutes)")
    elif others:
        at = {**best.settings, name: getattr(config, name)}
        compared.append(at)
        sized = [at, *({**at, name: count} for count in others)]
        say("other numbers of envs with the fastest of these, which are not kept (--sweep-envs N ... keeps them):")
        more = fastest(try_in_turn(try_one, sized, say, until=until), at)
        if more.settings == at:
            say(f"the run's own --{shown} {at[name]} is as fast as any")
        else:
            say(f"--{shown} {more.settings[name]} is faster; it shapes what is learned too, so that it is not kept")
    return best.settings


def profile_training(trainer: Trainer, config: Any, options: argparse.Namespace) -> None:
    """Measure, tell, and keep the fastest settings where that is asked for."""
    print(f"{trainer.algorithm}, preset {config.preset}, {config.env}, {usable_cores()} usable cores")
    here = settled(config)
    table = table_for(here)

    def say(*lines: str) -> None:
        print(*(part for line in lines for part in folded(line, table.width)), sep="\n", flush=True)

    found = ceilings(trainer, here, options.seconds)
    say("what each stage would allow if it were alone, then all of them together:")
    say(*table.picture({name: 1e6 / alone.steps_per_s for name, alone in found.items()}))
    began = time.monotonic()
    trial = _tried(trainer, config, options.together_seconds)
    took_s = time.monotonic() - began
    say(table.together(trial.steps_per_s, trial.frames_per_step, trial.updates_per_s), "")
    say(*legend({name: alone.does for name, alone in found.items()}, table.width), "")
    made_of = round_of(here, found)
    if made_of is not None:
        say(round_line(here, made_of))
    say(*together_lines(trial, found, made_of))
    if not options.sweep:
        return
    say("")
    beside_s = max(0.0, took_s - learning_for_s(config, options.together_seconds, trial.steps_per_s))
    each_s = options.together_seconds / _OF_TOGETHER / ROUNDS
    pace = Pace(each_s, learning_for_s(config, each_s, trial.steps_per_s), beside_s)
    settings = find_settings(trainer, config, options.sweep_envs, pace, 60 * options.sweep_minutes)
    print("fastest:", *(f"--{name.replace('_', '-')} {value}" for name, value in settings.items()))
    if options.output is not None:
        write_tuned(options.output, trainer.algorithm, config.env, machine(), settings)
        print(f"written: {options.output}; take it by --tuned {options.output}")
