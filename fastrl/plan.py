"""What a training will take of memory, disk and time on this machine, before anything large is allocated."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fastrl._algorithms import ALGORITHMS, new_run, trainer_of
from fastrl._command import require_output, run
from fastrl.engine.budget import available_memory_bytes
from fastrl.engine.files import free_bytes, write_private
from fastrl.engine.recorded_envs import require_known
from fastrl.runs import units
from fastrl.runs.planning import Part, Plan, plan
from fastrl.runs.trial import TrialFailed, try_out

FORMAT = 1
_DOES_NOT_FIT = 3
_MANY_CORES = 0.3  # for other programs; of fewer nothing is said


def lines_of(found: Plan) -> list[str]:
    """The plan as a table."""

    def table(shown: str, parts: list[Part], worded: Callable[[float], str], remark: str) -> list[str]:
        whole = worded(sum(part.amount for part in parts))
        each = [f"  {part.name:<20}{worded(part.amount):>9}  {part.why}" for part in parts]
        return [f"{shown:<8}{whole:>9}  {remark}", *each, ""]

    on_device = f"of {units.size(found.free_device_bytes)} free on {found.device_name}, beside the driver's own part"
    lines = [
        *table("memory", found.memory, units.size, f"of {units.size(found.available_bytes)} available"),
        *(table("device", found.device, units.size, on_device) if found.device else []),
        *table(
            "disk",
            found.disk,
            units.size,
            f"at the end, and {units.size(found.written_bytes)} more while a checkpoint is written, of "
            f"{units.size(found.free_disk_bytes)} free",
        ),
        *table("time", found.time, units.duration, "as fast as in the trial, and with games as long as there"),
        *_busy_machine(found),
    ]
    if not found.fits_on_disk:
        lines.append(f"it does not fit on the disk: {_less_disk(found)}")
    if not found.fits_on_device:
        lines.append(f"it does not fit on the device: {_less_on_device(found)}")
    if found.fits and found.fits_on_disk and found.fits_on_device:
        lines.append("it fits")
    if not found.fits:
        lines.append(f"it does not fit{_less_memory(found)}")
    return lines


def _busy_machine(found: Plan) -> list[str]:
    """What is wrong with the time."""
    if found.others_cores < _MANY_CORES:
        return []
    return [
        f"other programs took {found.others_cores:.1f} of {found.usable_cores} cores while it was tried: without them "
        "the run takes less time than this"
    ]


def _less_memory(found: Plan) -> str:
    """What would fit there."""
    if found.most_capacity:
        return (
            f": of {found.replay_capacity:,} transitions at most {found.most_capacity:,} do, with "
            f"--replay-capacity {found.most_capacity}"
        )
    return ", with any replay; end other programs, or use fewer --workers or --num-envs"


def _less_disk(found: Plan) -> str:
    """What would fit there."""
    if found.most_checkpoints:
        return f"--keep-checkpoints {found.most_checkpoints} does"
    smaller = ", --no-checkpoint-replay or a smaller --replay-capacity" if found.replay_capacity else ""
    return f"not even one checkpoint does; make room, or name another disk by --runs{smaller}"


def _less_on_device(found: Plan) -> str:
    """What would fit there."""
    if not found.mirrored:
        return "end other programs that use it, or give a smaller --batch or fewer games"
    smaller = f"--replay-capacity {found.most_mirrored} does, and " if found.most_mirrored else ""
    return f"{smaller}--replay-device cpu keeps the replay out of it"


def run_command(arguments: Sequence[str]) -> int:
    """Try, work out, tell; returns the exit code."""
    own = argparse.ArgumentParser(
        prog="fastrl plan",
        description=f"{__doc__} Every option of the trainer may follow: --algo dqn --env ... --preset nature",
        allow_abbrev=False,
        epilog="Exit code 3: it does not fit into the memory, on the disk or on the GPU, as they are free now.",
    )
    own.add_argument("--algo", required=True, help=", ".join(ALGORITHMS))
    own.add_argument("--seconds", type=float, default=8.0, help="of learning to measure (default: %(default)s)")
    own.add_argument("--output", type=Path, metavar="FILE.json", help="the plan, for programs")
    flags, rest = own.parse_known_args(arguments)
    if not 0 < flags.seconds <= 3600:
        raise ValueError(f"--seconds {flags.seconds} is outside (0, 3600]")
    require_output(flags.output)
    trainer = trainer_of(flags.algo)
    config = new_run(trainer, rest)
    require_known(config.env)
    print(
        f"{trainer.algorithm}, preset {config.preset}, {config.env}, {config.steps:,} steps: trying it for "
        f"{flags.seconds:g} s with a small replay ...",
        flush=True,
    )
    tried = try_out(trainer, config, flags.seconds)
    available, free = available_memory_bytes(), free_bytes(config.runs)
    found = plan(config, tried, available, free)
    if tried.mirrored and not found.mirrored:
        print("the device has no room for a copy of the whole replay: trying it without one ...", flush=True)
        tried = try_out(trainer, dataclasses.replace(config, replay_device="cpu"), flags.seconds)
        found = plan(config, tried, available, free)
    print("\n" + "\n".join(lines_of(found)))
    if flags.output is not None:
        fits = {name: getattr(found, name) for name in ("fits", "fits_on_disk", "fits_on_device")}
        content = {"format": FORMAT, **fits, **dataclasses.asdict(found)}
        write_private(flags.output, json.dumps(content, indent=1).encode() + b"\n")
    return 0 if found.fits and found.fits_on_disk and found.fits_on_device else _DOES_NOT_FIT


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    try:
        sys.exit(run_command(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, TypeError, OSError, MemoryError, TrialFailed) as error:
        sys.exit(f"fastrl plan: {error}")


if __name__ == "__main__":
    run(main)
