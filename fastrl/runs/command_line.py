"""From a dataclass to a command: presets, resuming, several seeds, the proof of resuming."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastrl.engine.games import nearest
from fastrl.engine.recorded_envs import is_atari, require_known
from fastrl.runs.options import refuse_changes
from fastrl.runs.run_dir import NotARun, RunDir, machine
from fastrl.runs.side_by_side import is_said, run_seeds
from fastrl.runs.traps import NonFiniteLoss
from fastrl.runs.tuned import tuned_line, with_tuned
from fastrl.runs.workers import WorkerFailed

Presets = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Trainer:
    """One algorithm as a command.

    ``train`` is given a configuration, and what to go on with; it returns the session that it made.
    """

    algorithm: str
    config_class: type[Any]
    presets: Presets
    train: Callable[..., Any]
    atari_preset: str  # what trains an Atari game, or no named env, when no preset is named
    other_preset: str  # and any other env
    tried_as: Callable[[Any], dict[str, Any]] = lambda config: {}  # what a trial of a few seconds does in small

    def default_preset(self, env: str | None) -> str:
        """What trains ``env`` when no preset is named."""
        return self.atari_preset if env is None or is_atari(env) else self.other_preset


def with_preset(trainer: Trainer, name: str) -> Any:
    """The configuration that a preset stands for."""
    if name not in trainer.presets:
        raise ValueError(
            f"preset: '{name}' is unknown{nearest(name, list(trainer.presets))}; known: {', '.join(trainer.presets)}"
        )
    return trainer.config_class(preset=name, **trainer.presets[name])


def preset_lines(trainer: Trainer, config: Any) -> list[str]:
    """What a configuration's preset changes of the defaults, a line each, and which of that was given otherwise."""
    base = trainer.config_class()
    chosen = with_preset(trainer, config.preset)
    lines = []
    for field in dataclasses.fields(base):
        default, preset, given = (getattr(each, field.name) for each in (base, chosen, config))
        if field.name != "preset" and preset != default:
            instead = "" if given == preset else f"; {given!r} was given instead"
            lines.append(f"  {field.name} = {preset!r} (default {default!r}{instead})")
    return lines


def from_stored(config_class: type[Any], stored: dict[str, Any]) -> Any:
    """A configuration as config.json has it."""
    known = {field.name: field for field in dataclasses.fields(config_class)}
    unknown = sorted(set(stored) - set(known))
    if unknown:
        raise NotARun(f"run: its configuration has {', '.join(unknown)}, which this version of fastrl does not know")
    values: dict[str, Any] = {}
    for name, value in stored.items():
        if isinstance(value, list):
            value = tuple(value)
        values[name] = Path(value) if name == "runs" else value
    return config_class(**values)


def _own_flags(trainer: Trainer) -> argparse.ArgumentParser:
    """The flags that are not part of a configuration."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    default = trainer.atari_preset
    if trainer.other_preset != default:
        default += f" for Atari games, {trainer.other_preset} for other envs"
    parser.add_argument("--preset", help=f"{', '.join(trainer.presets)} (default: {default})")
    parser.add_argument(
        "--tuned", type=Path, metavar="FILE", help="threads, workers and envs as `fastrl profile` found them fastest"
    )
    parser.add_argument("--resume", type=Path, help="go on with the run in this directory; more --steps extend it")
    parser.add_argument("--resume-without-replay", type=Path, help="the same from a checkpoint that has no replay")
    parser.add_argument("--accept-changed-bits", action="store_true", help="resume under other versions")
    parser.add_argument("--seeds", help="several runs side by side within the cores: 0-4 or 0,3,7")
    parser.add_argument(
        "--verify-resume", type=int, metavar="STEPS", help="prove that stopping after STEPS changes nothing"
    )
    return parser


def _require_said_again(stored: Any, arguments: Sequence[str]) -> None:
    """Raise if resuming would import a module that only the run's files name."""
    for name in ("network", "env"):
        value = str(getattr(stored, name, ""))
        if ":" in value and not is_said(f"--{name}", arguments):
            raise ValueError(
                f"resume: the run's {name} '{value}' imports a module, and resuming runs no code that only a file "
                f"names; if you trust it, say it again: --{name} {value}"
            )


def parse(trainer: Trainer, arguments: Sequence[str]) -> tuple[Any, argparse.Namespace]:
    """The configuration that a command line asks for, and the flags beside it."""
    import tyro

    own = _own_flags(trainer)
    flags, rest = own.parse_known_args(arguments)
    resumed = flags.resume or flags.resume_without_replay
    if resumed is not None:
        if flags.seeds is not None:
            raise ValueError("resume: it goes on with one run, so leave out --seeds and resume each run by itself")
        if flags.preset is not None:
            raise ValueError("resume: the preset is stored with the run; leave out --preset")
        if flags.tuned is not None:
            raise ValueError("resume: threads are stored with the run; leave out --tuned")
        run = RunDir.open(resumed)
        if run.algorithm != trainer.algorithm:
            raise NotARun(
                f"resume: {resumed} is a run of {run.algorithm}; go on with it by python -m fastrl.{run.algorithm}"
            )
        default = from_stored(trainer.config_class, run.config)
        _require_said_again(default, rest)
    else:
        env = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        env.add_argument("--env")
        named = env.parse_known_args(rest)[0].env
        default = with_preset(trainer, flags.preset or trainer.default_preset(named))
        if flags.tuned is not None:
            default = with_tuned(default, flags.tuned, trainer.algorithm)
    description = (
        f"{(sys.modules[trainer.config_class.__module__].__doc__ or '').splitlines()[0]}\n\n"
        "Beside the options below (defaults are those of the chosen preset):\n" + own.format_help().split(":", 2)[-1]
    )
    config = tyro.cli(
        trainer.config_class,
        args=list(rest),
        default=default,
        prog=f"fastrl {trainer.algorithm}",
        description=description,
    )
    if config.preset != default.preset:
        raise ValueError("preset: give it as --preset NAME")
    if resumed is not None:
        refuse_changes(default, config)
    return config, flags


def main(trainer: Trainer, arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        config, flags = parse(trainer, arguments)
        if flags.verify_resume is not None:
            from fastrl.runs.verify import verify_resume

            sys.exit(verify_resume(trainer, config, flags.verify_resume))
        if flags.seeds is not None:
            sys.exit(run_seeds(trainer.algorithm, list(arguments), flags.seeds, config.name))
        if flags.resume is None and flags.resume_without_replay is None:
            require_known(config.env)
            changes = preset_lines(trainer, config)
            print(f"preset {config.preset}{':' if changes else ', the default'}", *changes, sep="\n")
        if flags.tuned is not None:
            print(tuned_line(config, flags.tuned, machine()))
        exit_code = trainer.train(
            config,
            resume_run=flags.resume or flags.resume_without_replay,
            without_replay=flags.resume_without_replay is not None,
            accept_changed_bits=flags.accept_changed_bits,
        ).exit_code
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError, MemoryError, NonFiniteLoss, WorkerFailed) as error:
        sys.exit(f"fastrl {trainer.algorithm}: {error}")
    sys.exit(exit_code)
