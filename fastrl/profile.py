"""Where the time of games, or of a training, goes on this machine, and which threads and envs are fastest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastrl._algorithms import ALGORITHMS, new_run, trainer_of
from fastrl._command import require_output, run
from fastrl.engine.budget import usable_cores
from fastrl.engine.native import build_info
from fastrl.engine.protocol import DEFAULT_PROTOCOL
from fastrl.engine.stage_times import OWN_STAGES, StageTimes, pool_steps_per_s, stage_times
from fastrl.runs.stage_table import StageTable, columns, folded, legend
from fastrl.runs.stop import exits_in_order

_MEANING = {
    "emulate": "act(): the engine itself",
    "restart": "new games: emulated resets or jumps to saved starts",
    "keep_screens": "copies of the screens that are pooled",
    "reduce": "pool, grey, resize to 84x84",
    "write_stack": "the stack of four into the batch",
    "rest": "rules, reports, calls, and the stamps",
}


def counted(num_envs: int) -> str:
    """How many envs, in words."""
    return "one env" if num_envs == 1 else f"{num_envs} envs in turn"


def stage_lines(times: StageTimes, width: int) -> list[str]:
    """The picture of one step."""
    table = StageTable(times.frames_per_step, width=width)
    whole = table.together(1e6 / times.step_us, times.frames_per_step, 0.0)
    return [
        *folded(
            f"{times.game}, protocol {times.protocol.name}, random actions, {counted(times.num_envs)} on one thread: "
            f"{times.step_us:.1f} us a step of {times.frames_per_step:.2f} frames",
            width,
        ),
        *table.picture(times.stage_us),
        whole,
        *folded(
            f"  besides the engine: {times.own_us:.1f} us ({', '.join(OWN_STAGES)}); "
            f"the same engine calls in a bare loop, every reset emulated: {times.act_loop_us:.1f} us",
            width,
        ),
    ]


def show(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    print("measuring (loading a cartridge takes the engine 0.1 s an env) ...", flush=True)
    alone = stage_times(arguments.env, arguments.protocol, arguments.steps)
    together = stage_times(arguments.env, arguments.protocol, arguments.steps, num_envs=16)
    info = build_info()
    cores = usable_cores()
    print(f"{info['compiler']}, {info['cpu_path']} pixel functions, ale-py {info['ale_py']}, {cores} usable cores\n")
    width = columns()
    print("\n".join([*stage_lines(alone, width), "", *stage_lines(together, width), "", *legend(_MEANING, width)]))
    print("\nAgent steps a second of a whole pool:")
    best = (0.0, 0, 0)
    for threads in sorted({1, max(1, cores // 2), cores}):
        cells = []
        for envs in arguments.envs:
            if threads > envs:
                continue
            speed = pool_steps_per_s(arguments.env, arguments.protocol, envs, threads, arguments.seconds)
            best = max(best, (speed, threads, envs))
            cells.append(f"{envs:>4} envs {speed:>8,.0f}")
        if cells:
            print(f"  {threads:>3} {'thread ' if threads == 1 else 'threads'}  " + "   ".join(cells), flush=True)
    frames = f"{best[0] * alone.protocol.frame_skip:,.0f} frames/s"
    print(f"\nfastest: {best[0]:,.0f} steps/s ({frames}) with threads={best[1]}, num_envs={best[2]}")


def profile_pool(arguments: list[str]) -> None:
    """Stepping games alone."""
    parser = argparse.ArgumentParser(prog="fastrl profile", description=__doc__, allow_abbrev=False)
    parser.add_argument("--algo", help=f"profile a training of {', '.join(ALGORITHMS)}; its own --help has the options")
    parser.add_argument("--env", default="BreakoutNoFrameskip-v4", help="which game (default: %(default)s)")
    parser.add_argument("--protocol", default=DEFAULT_PROTOCOL, help="which rules (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help="steps of one env to look into (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each pool that is tried (default: %(default)s)")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 4, 16, 64], help="pool sizes to try")
    asked = parser.parse_args(arguments)
    require("--steps", asked.steps, 10_000_000)
    require("--seconds", asked.seconds, 3600)
    for envs in asked.envs:
        require("--envs", envs, 65_536)
    show(asked)


def profile_algorithm(arguments: list[str]) -> None:
    """A training, with the trainer's own options."""
    from fastrl._training_profile import profile_training

    parser = argparse.ArgumentParser(
        prog="fastrl profile",
        description=f"{__doc__} Every option of the trainer may follow: --algo dqn --env ... --preset nature",
        allow_abbrev=False,
    )
    parser.add_argument("--algo", required=True, help=", ".join(ALGORITHMS))
    parser.add_argument("--seconds", type=float, default=2.0, help="for each stage alone (default: %(default)s)")
    parser.add_argument("--together-seconds", type=float, default=60.0, help="for all at once (default: %(default)s)")
    parser.add_argument("--no-sweep", dest="sweep", action="store_false", help="do not look for the fastest settings")
    parser.add_argument(
        "--sweep-envs",
        type=int,
        nargs="+",
        default=[],
        help="numbers of envs to try and keep (default: some, kept never)",
    )
    parser.add_argument(
        "--sweep-minutes",
        type=float,
        default=30.0,
        help="after which no more settings are tried (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="keep the fastest settings for --tuned")
    options, rest = parser.parse_known_args(arguments)
    require("--seconds", options.seconds, 3600)
    require("--together-seconds", options.together_seconds, 3600)
    require("--sweep-minutes", options.sweep_minutes, 7 * 24 * 60)
    for envs in options.sweep_envs:
        require("--sweep-envs", envs, 65_536)
    require_output(options.output)
    if not options.sweep and (options.output is not None or options.sweep_envs):
        raise ValueError("--no-sweep: nothing is found then that --output could keep; leave out one of them")
    trainer = trainer_of(options.algo)
    with exits_in_order():  # there is a folder for what is measured, and there are trials
        profile_training(trainer, new_run(trainer, rest), options)


def require(name: str, value: float, most: float) -> None:
    """Raise unless it is in (0, most]."""
    if not 0 < value <= most:
        raise ValueError(f"{name} {value} is outside (0, {most:,}]")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        trains = any(argument.partition("=")[0] == "--algo" for argument in arguments)
        (profile_algorithm if trains else profile_pool)(arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, TypeError, OSError, MemoryError, RuntimeError) as error:
        sys.exit(f"fastrl profile: {error}")


if __name__ == "__main__":
    run(main)
