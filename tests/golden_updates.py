"""How far a hundred updates move a trainer's weights, and how far they always did: golden/<trainer>.json.

`python tests/golden_updates.py [dqn ...]` writes those again. To be done only when an update is meant to move weights
otherwise than before; CHANGELOG.md says then why.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

TRAINERS = ("dqn", "a3c", "async_q", "ddpg")
UPDATES = 100
# Further away is a change of the algorithm, to be told in CHANGELOG.md.
_TOLERANCE = 2e-4


def _file(trainer: str) -> Path:
    return Path(__file__).parent / "golden" / f"{trainer}.json"


def movement(network: torch.nn.Module, update: Callable[[], object]) -> np.ndarray:
    """How far the updates move the weights, along a few fixed directions of each layer."""
    torch.set_num_threads(1)
    began = {name: p.detach().clone() for name, p in network.named_parameters()}
    for _ in range(UPDATES):
        update()
    found = []
    for name, parameter in network.named_parameters():
        moved = (parameter.detach() - began[name]).double().numpy().ravel()
        directions = np.random.default_rng(2).choice([-1.0, 1.0], (3, moved.size))
        found += [np.linalg.norm(moved), *(directions @ moved / np.sqrt(moved.size))]
    return np.array(found)


def movement_by_rounds(worker: Any) -> np.ndarray:
    """The same of an asynchronous worker that is alone: a round is an update."""
    steps = 0

    def update() -> None:
        nonlocal steps
        steps += worker.round(steps)[0]
        worker.optimiser.snapshot(worker.local.values)

    worker.optimiser.snapshot(worker.local.values)
    return movement(worker.local.network, update)


def require_golden(trainer: str, name: str, movement_of: Callable[[Any], np.ndarray], config: Any, *rates: str) -> None:
    """The movement is the stored one, by a tolerance that would notice ``rates`` higher by a thousandth."""
    golden = np.array(json.loads(_file(trainer).read_text())[name])
    higher = dataclasses.replace(config, **{rate: getattr(config, rate) * 1.001 for rate in rates})
    away, planted = (
        float(np.linalg.norm(movement_of(each) - golden) / np.linalg.norm(golden)) for each in (config, higher)
    )
    print(f"{name}: {away:.1e} away from what was stored; {' and '.join(rates)} higher by 1/1000: {planted:.1e}")
    assert away < _TOLERANCE < planted


if __name__ == "__main__":
    for trainer in sys.argv[1:] or TRAINERS:
        test = importlib.import_module(f"test_{trainer}")
        found = {
            name: test.movement(test.preset(name, **changes)).tolist() for name, changes in test.GOLDEN_CONFIGS.items()
        }
        _file(trainer).write_text(json.dumps(found, indent=1) + "\n")
