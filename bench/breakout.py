"""What benchmarks of DQN's updates on Breakout share: the network, and batches of noise in the shape of its frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

ENV = "BreakoutNoFrameskip-v4"
NETWORK: dict[str, Any] = {"kind": "q", "torso": "nature", "obs_shape": [4, 84, 84], "num_actions": 4}
BATCH = 32


def batch_of(generator: np.random.Generator, device: str = "cpu") -> dict[str, torch.Tensor]:
    frames = torch.from_numpy(generator.integers(0, 256, (BATCH, 5, 84, 84), np.uint8))
    made = {
        "obs": frames[:, :4],
        "action": torch.from_numpy(generator.integers(4, size=BATCH)),
        "reward": torch.from_numpy(generator.choice(np.float32([-1, 0, 1]), BATCH)),
        "discount": torch.full((BATCH,), 0.99),
        "next_obs": frames[:, 1:],
        "weight": torch.ones(BATCH),
    }
    return {name: tensor.to(device) for name, tensor in made.items()}
