"""Kill and stop real trainings at random moments: `python tests/kills.py --times 20`.

Each training of DQN on Pong is killed once with SIGKILL at a random moment after its first checkpoint, and resumed to
its end: weights, optimiser, generators, replay, games and emulators must be those of an undisturbed run, to the bit,
and metrics.csv too in every column that tells of the run. Then as many trainings are sent SIGINT or SIGTERM: each must
end within five seconds, with its exit code, a whole checkpoint and no process left. pytest runs a sample
(test_resume.py).
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from nursery import Nursery
from tiny_training import (
    config_of,
    digest_of,
    flags_of,
    processes_with,
    require_resumable,
    rows,
    start,
    wait_for_a_checkpoint,
)


def kill_one(
    nursery: Nursery, runs: Path, number: int, rng: random.Random, prioritised: bool
) -> tuple[int, float, Path]:
    """Kill a training and let it end; the steps it went on from, how long after its first checkpoint, and where."""
    name = f"killed-{number}"
    config = config_of(runs, name, checkpoint_every_steps=4 * rng.randint(2, 15), prioritised=prioritised)
    run, log = runs / name, runs / f"{name}.log"
    child = start(nursery, config, log)
    wait_for_a_checkpoint(child, run)
    after_s = rng.random() * 1.5
    time.sleep(after_s)
    child.kill()
    if child.wait() == 0:
        raise AssertionError("the training was over before it was killed")
    steps = require_resumable(run).checkpoint.steps
    again = start(nursery, config, log, resume_run=run)
    if again.wait(120) != 0:
        raise AssertionError(again.said())
    return steps, after_s, run


def stop_one(nursery: Nursery, runs: Path, number: int, rng: random.Random) -> tuple[float, int]:
    """Send a training a signal; how long it took to end, and the steps of its checkpoint."""
    name = f"stopped-{number}"
    config = config_of(runs, name, steps=10_000_000)
    run = runs / name
    child = nursery.start("nursery:train", flags_of(config), output=runs / f"{name}.log")
    while not (run / "config.json").exists():
        time.sleep(0.001)
    time.sleep(0.3 + rng.random() * 3)
    which, code = rng.choice(((signal.SIGINT, 130), (signal.SIGTERM, 143)))
    began = time.monotonic()
    child.kill(which)
    assert child.wait(60) == code, child.said()
    took = time.monotonic() - began
    assert "go on with --resume" in child.said(), child.said()
    assert not child.processes()
    assert not processes_with(str(run))
    return took, require_resumable(run).checkpoint.steps


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    nursery = Nursery()
    wrong = 0
    with tempfile.TemporaryDirectory() as directory:
        runs = Path(directory)
        whole = {}
        for prioritised in (False, True):
            name = f"whole-{prioritised}"
            child = start(nursery, config_of(runs, name, prioritised=prioritised), runs / "log")
            assert child.wait(120) == 0, child.said()
            whole[prioritised] = (digest_of(runs / name), rows(runs / name))
        print("| killed | replay | s after the first checkpoint | went on from step | digest | metrics.csv |")
        print("|---|---|---|---|---|---|")
        for number in range(given.times):
            prioritised = bool(number % 2)
            steps, after_s, run = kill_one(nursery, runs, number, rng, prioritised)
            same = digest_of(run) == whole[prioritised][0]
            same_rows = rows(run) == whole[prioritised][1]
            wrong += not (same and same_rows)
            kind = "prioritised" if prioritised else "uniform"
            print(
                f"| {number + 1} | {kind} | {after_s:.2f} | {steps} | {'equal' if same else 'DIFFERENT'} | "
                f"{'equal' if same_rows else 'DIFFERENT'} |",
                flush=True,
            )
            shutil.rmtree(run)
        took = []
        for number in range(given.times):
            took.append(stop_one(nursery, runs, number, rng)[0])
            shutil.rmtree(runs / f"stopped-{number}")
        print(f"\nkilled and resumed: {given.times - wrong}/{given.times} identical")
        print(f"SIGINT, SIGTERM: {given.times} ended after at most {max(took):.2f} s, 0 processes left")
    nursery.close()
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
