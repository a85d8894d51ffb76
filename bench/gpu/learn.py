"""Trains DQN at `nature` settings for some minutes and leaves what is worth keeping in small files.

Goes on from an earlier piece's files if they lie in --out: `policy` and optimiser are in the checkpoint, the replay is
filled again by acting (--resume-without-replay), since it does not travel.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_MOST_BYTES = 15_000_000  # of a file that comes back
_TO_STOP_S = 40.0


def in_parts(path: Path, out: Path) -> None:
    """A file as parts that are small enough."""
    content = path.read_bytes()
    for number, at in enumerate(range(0, len(content), _MOST_BYTES)):
        (out / f"{path.name}.{number:02d}").write_bytes(content[at : at + _MOST_BYTES])


def together(out: Path, folder: Path) -> None:
    """The files that :func:`in_parts` cut."""
    for first in sorted(out.glob("*.00")):
        parts = sorted(out.glob(first.name[:-3] + ".[0-9][0-9]"))
        (folder / first.name[:-3]).write_bytes(b"".join(part.read_bytes() for part in parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--env", default="BreakoutNoFrameskip-v4")
    parser.add_argument("--name", default="nature")
    arguments, more = parser.parse_known_args()
    runs = Path("gpu-runs")
    run = runs / arguments.name
    command = [sys.executable, "-m", "fastrl.dqn"]
    if (arguments.out / "config.json").exists():
        (run / "checkpoints").mkdir(parents=True)
        for name in ("config.json", "metrics.csv", "evaluations.csv"):
            if (arguments.out / name).exists():
                shutil.copy(arguments.out / name, run / name)
        together(arguments.out, run / "checkpoints")
        command += ["--resume-without-replay", str(run)]
    else:
        command += ["--env", arguments.env, "--name", arguments.name, "--runs", str(runs)]
    command += ["--device", "cuda", "--no-checkpoint-replay", "--keep-checkpoints", "1", "--no-tensorboard", *more]
    began = time.monotonic()
    process = subprocess.Popen(command)
    try:
        process.wait(arguments.minutes * 60 - _TO_STOP_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait(_TO_STOP_S)
    for name in ("config.json", "metrics.csv", "evaluations.csv"):
        if (run / name).exists():
            shutil.copy(run / name, arguments.out / name)
    for old in arguments.out.glob("*.[0-9][0-9]"):
        old.unlink()
    for path in sorted((run / "checkpoints").glob("ckpt-*")):
        in_parts(path, arguments.out)
    print(f"{(time.monotonic() - began) / 60:.1f} minutes; exit code {process.returncode}")
    for path in sorted(arguments.out.iterdir()):
        print(f"  {path.name} {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
