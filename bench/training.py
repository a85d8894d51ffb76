"""What benchmarks of whole trainings share: ours and Stable-Baselines3's, timed from the end of the warm-up."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from contest import Contest

from fastrl.runs.metrics import read_metrics
from fastrl.runs.session import Session

WARM_UP_STEPS = 400
NOTHING_BESIDE = {
    "evaluate_every_steps": 0, "checkpoint_every_minutes": 0.0, "checkpoint_replay": False, "tensorboard": False,
}  # fmt: skip


class Ours:
    """Trains anew at each call and returns the seconds of ``steps`` steps, as the log has them.

    Args:
        steps: after the warm-up.
        train: leaves its run in the folder that it is given.
    """

    def __init__(self, steps: int, train: Callable[[Path], Session]) -> None:
        self._steps, self._train = steps, train
        self.shares: dict[str, float] = {}  # of the time, by stage, in the last call

    def __call__(self) -> float:
        with tempfile.TemporaryDirectory() as folder:
            rows = read_metrics(self._train(Path(folder)).run.metrics_file)
        learning = rows["updates"] > 0
        self.shares = {
            name.removeprefix("share/"): rows[name][learning].mean() for name in rows if name.startswith("share/")
        }
        spent = np.diff(rows["steps"], prepend=0)[learning] / rows["steps_per_s"][learning]
        return float(spent.sum() * self._steps / (rows["steps"][-1] - WARM_UP_STEPS))


def sb3_seconds(model: Any, steps: int) -> float:
    """Of ``steps`` steps of a model of Stable-Baselines3, after its warm-up."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Stopwatch(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.began = 0.0

        def _on_step(self) -> bool:
            if self.num_timesteps == WARM_UP_STEPS:
                self.began = time.perf_counter()
            return True

    watch = Stopwatch()
    model.learn(WARM_UP_STEPS + steps, callback=watch)
    return time.perf_counter() - watch.began


def compare(match: Contest, ours: Ours, others: dict[str, Callable[[], Any]], rounds: int) -> None:
    """Time everyone, and print where our time goes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers'
        match.run(ours, others, rounds)
    print(f"\n{match.title}: {', '.join(f'{stage} {share:.0%}' for stage, share in ours.shares.items())}")
