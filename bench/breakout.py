"""What benchmarks of DQN's updates on Breakout share: the network, and batches of noise in the shape of its frames."""

from __future__ import annotations

import numpy as np
import torch

ENV = "BreakoutNoFrameskip-v4"
NETWORK = {"kind": "q", "torso": "nature", "obs_shape": [4, 84, 84], "num_actions": 4}


def batch_of(generator: np.random.Generator, device: str = "cpu") -> dict[str, torch.Tensor]:
    frames = torch.from_numpy(generator.integers(0, 256, (32, 5, 84, 84), np.uint8))
    made = {
        "obs": frames[:, :4],
        "action": torch.from_numpy(generator.integers(4, size=32)),
        "reward": torch.from_numpy(generator.choice(np.float32([-1, 0, 1]), 32)),
        "discount": torch.full((32,), 0.99),
        "next_obs": frames[:, 1:],
        "weight": torch.ones(32),
    }
    return {name: tensor.to(device) for name, tensor in made.items()}
