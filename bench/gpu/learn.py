"""Trains DQN at `nature` settings for some minutes and leaves what is worth keeping in small files.

Goes on from an earlier piece's files if they lie in --out: policy and optimiser are in the checkpoint, the replay is
filled again by acting (--resume-without-replay), since it does not travel. Options that this does not know are the
trainer's. What lies in --out is replaced only by what this piece left: a newer checkpoint and its run's curves.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_MOST_BYTES = 15_000_000  # of a file that comes back; 16 MiB are the limit
_MOST_PARTS = 100  # two digits
_TO_STOP_S = 40.0  # for the last checkpoint
_LEAST_TO_LEARN_S = 10.0
_CURVES = ("metrics.csv", "evaluations.csv")
_ENDED_WELL = (0, 128 + signal.SIGTERM)  # at its last step; when its time was over


class Refused(Exception):
    """What was asked for cannot be done; the text says why, and what can."""


# ---- files that travel


def in_parts(path: Path, out: Path) -> list[str]:
    """A file in ``out``, in parts if it is too large for one; returns their names."""
    content = path.read_bytes()
    if len(content) <= _MOST_BYTES:
        cut = {path.name: content}
    else:
        cut = {
            f"{path.name}.{number:02d}": content[at : at + _MOST_BYTES]
            for number, at in enumerate(range(0, len(content), _MOST_BYTES))
        }
    if len(cut) > _MOST_PARTS:
        raise Refused(f"{path} has {len(content):,} bytes, and at most {_MOST_PARTS * _MOST_BYTES:,} can be cut")
    for name, part in cut.items():
        beside = out / f".{name}.part"  # a reader finds the old file or the new one, never half of it
        beside.write_bytes(part)
        beside.replace(out / name)
    return list(cut)


def together(out: Path, name: str) -> bytes:
    """The file that :func:`in_parts` left."""
    if (out / name).exists():
        return (out / name).read_bytes()
    parts = sorted(out.glob(f"{name}.[0-9][0-9]"))
    if [part.name for part in parts] != [f"{name}.{number:02d}" for number in range(len(parts))]:
        raise Refused(f"--out: {out} lacks a part of {name} among {[part.name for part in parts]}; bring it too")
    return b"".join(part.read_bytes() for part in parts)


def whole_names(out: Path) -> set[str]:
    """Names of the files that lie in ``out``, whole or in parts."""
    names = (path.name for path in out.iterdir() if path.is_file() and not path.name.startswith("."))
    return {name[:-3] if name[-3:-2] == "." and name[-2:].isdigit() else name for name in names}


def bring_back(out: Path, run: Path) -> None:
    """The run that an earlier piece left in ``out``."""
    (run / "checkpoints").mkdir(parents=True)
    for name in whole_names(out):
        if name.startswith("ckpt-"):
            (run / "checkpoints" / name).write_bytes(together(out, name))
        elif name == "config.json" or name in _CURVES:
            (run / name).write_bytes(together(out, name))


def newest_checkpoint(run: Path) -> tuple[int, list[Path]]:
    """Its steps, and its files; -1 and none where there is none."""
    steps = [int(path.stem[len("ckpt-") :]) for path in (run / "checkpoints").glob("ckpt-*.json")]
    if not steps:
        return -1, []
    return max(steps), sorted((run / "checkpoints").glob(f"ckpt-{max(steps):012d}*"))


def leave(run: Path, out: Path, files: list[Path]) -> None:
    """The checkpoint and the curves of ``run`` in ``out``, and nothing of an earlier piece."""
    before = {path for path in out.iterdir() if path.name.startswith(("ckpt-", *_CURVES))}
    left = set()
    for path in (*files, run / "config.json", *(run / name for name in _CURVES)):
        if path.exists():
            left |= {out / name for name in in_parts(path, out)}
    for path in before - left:
        path.unlink()


# ---- the trainer


def unused(runs: Path, name: str) -> Path:
    """A folder of ``runs`` that is not there yet: a run of this machine's earlier pieces is no part of this one."""
    number, path = 1, runs / name
    while path.exists():
        number += 1
        path = runs / f"{name}-{number}"
    return path


def tend(process: subprocess.Popen[bytes], learn_s: float, to_stop_s: float) -> bool:
    """Wait for the end, for which it is asked after ``learn_s``, or when this is; returns whether it had to be killed.

    Args:
        process: leads a session of its own.
        learn_s: until it is asked.
        to_stop_s: from there until it is killed.
    """
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        end = time.monotonic() + learn_s
        while process.poll() is None and not asked and time.monotonic() < end:
            time.sleep(0.1)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        end = time.monotonic() + to_stop_s
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        if process.poll() is not None:
            return False
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def learn(arguments: argparse.Namespace, more: list[str]) -> int:
    """One piece; the exit code."""
    began = time.monotonic()
    learn_s = arguments.minutes * 60 - arguments.to_stop_s
    if not learn_s >= _LEAST_TO_LEARN_S or arguments.to_stop_s <= 0:
        least = (max(arguments.to_stop_s, 0) + _LEAST_TO_LEARN_S) / 60
        raise Refused(
            f"--minutes: {arguments.minutes:g} leave {learn_s:.0f} s to learn in, since {arguments.to_stop_s:g} s are "
            f"kept for the last checkpoint (--to-stop-s, above 0); give at least {least:.2f}"
        )
    if not arguments.out.is_dir():
        raise Refused(f"--out: {arguments.out} is no folder; make it first, or name one that is there")
    run = unused(arguments.runs, arguments.name)
    command = [sys.executable, "-m", "fastrl.dqn"]
    going_on = "config.json" in whole_names(arguments.out)
    if going_on:
        bring_back(arguments.out, run)
        env = json.loads((run / "config.json").read_text())["config"]["env"]
        if arguments.env not in (None, env):
            raise Refused(
                f"--env: {arguments.env} is not {env}, which the run in {arguments.out} learns; leave --env out to go "
                f"on with it, or give an empty --out for a new run"
            )
        command += ["--resume-without-replay", str(run)]
    else:
        env = arguments.env or "BreakoutNoFrameskip-v4"
        command += ["--env", env, "--name", run.name, "--runs", str(arguments.runs)]
    steps_before, _ = newest_checkpoint(run)
    command += ["--device", arguments.device, "--no-checkpoint-replay", "--keep-checkpoints", "1", "--no-tensorboard"]
    process = subprocess.Popen([*command, *more], start_new_session=True)
    killed = tend(process, learn_s - (time.monotonic() - began), arguments.to_stop_s)
    steps, files = newest_checkpoint(run)
    told = f"{(time.monotonic() - began) / 60:.1f} minutes; exit code {process.returncode} of the trainer"
    if steps > steps_before:
        leave(run, arguments.out, files)
        print(f"{told}; checkpoint of step {steps:,}")
        for path in sorted(arguments.out.iterdir()):
            print(f"  {path.name} {path.stat().st_size:,} bytes")
    else:
        was = f"stays as it was, at step {steps_before:,}" if going_on else "got nothing"
        print(f"{told}; it left no new checkpoint: {arguments.out} {was}")
    if killed:
        print(f"learn: the trainer did not stop within {arguments.to_stop_s:g} s and was killed", file=sys.stderr)
    elif process.returncode == -signal.SIGTERM:
        print("learn: the trainer was still starting when its time was over; give more --minutes", file=sys.stderr)
    elif process.returncode not in _ENDED_WELL:
        print(f"learn: the trainer failed with exit code {process.returncode}; it says why above", file=sys.stderr)
    elif steps <= steps_before:
        print("learn: nothing was learned", file=sys.stderr)
    if going_on and steps <= steps_before:
        shutil.rmtree(run)  # only what was copied there
    return int(killed or process.returncode not in _ENDED_WELL or steps <= steps_before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--minutes", type=float, required=True, help="for all of it")
    parser.add_argument("--out", type=Path, required=True, help="where files come from and go to")
    parser.add_argument("--env", help="of a new run; default: BreakoutNoFrameskip-v4")
    parser.add_argument("--name", default="nature", help="of the run")
    parser.add_argument("--runs", type=Path, default=Path(__file__).parent / "gpu-runs", help="where runs lie")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this script")
    parser.add_argument("--to-stop-s", type=float, default=_TO_STOP_S, help="of the minutes, for the last checkpoint")
    arguments, more = parser.parse_known_args()
    try:
        sys.exit(learn(arguments, more))
    except Refused as refused:
        sys.exit(f"learn: {refused}")


if __name__ == "__main__":
    main()
