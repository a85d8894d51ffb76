"""Optimisers that torch does not have as the papers used them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class CentredRMSProp(torch.optim.Optimizer):
    """RMSProp as DeepMind's DQN code has it: divided by the gradient's standard deviation, epsilon under the root.

    With decay d, over each gradient g: m = d m + (1-d) g; v = d v + (1-d) g*g; w -= rate * g / sqrt(v - m*m + eps).
    torch's own adds epsilon after the root, which at the paper's 0.01 is another optimiser.
    """

    def __init__(self, params: Iterable[Tensor], learning_rate: float, decay: float, epsilon: float) -> None:
        super().__init__(params, {"lr": learning_rate, "decay": decay, "eps": epsilon})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "mean": torch.zeros_like(parameter),
                    "square": torch.zeros_like(parameter),
                }

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the parameters by their gradients."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters]
            means = [self.state[p]["mean"] for p in parameters]
            squares = [self.state[p]["square"] for p in parameters]
            decay = group["decay"]
            torch._foreach_lerp_(means, gradients, 1 - decay)
            torch._foreach_mul_(squares, decay)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - decay)
            deviations = torch._foreach_addcmul(squares, means, means, -1)
            torch._foreach_add_(deviations, group["eps"])
            torch._foreach_sqrt_(deviations)
            torch._foreach_addcdiv_(parameters, gradients, deviations, -group["lr"])


def state_tensors(optimiser: torch.optim.Optimizer, names: dict[Tensor, str]) -> dict[str, Tensor]:
    """Everything an optimiser remembers, each tensor under its parameter's name."""
    return {
        f"{names[parameter]}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for parameter, remembered in optimiser.state.items()
        for key, value in remembered.items()
    }


def load_state_tensors(optimiser: torch.optim.Optimizer, names: dict[Tensor, str], tensors: dict[str, Tensor]) -> None:
    """What :func:`state_tensors` gave, into an optimiser of the same parameters."""
    for parameter, name in names.items():
        mine = {key.rpartition(".")[2]: value for key, value in tensors.items() if key.rpartition(".")[0] == name}
        remembered = optimiser.state[parameter]
        for key, value in mine.items():
            # Counters stay where torch's optimisers want them: on the parameter's device only if they were there.
            if key in remembered and isinstance(remembered[key], Tensor):
                remembered[key].copy_(value)
            elif value.ndim == 0:
                remembered[key] = value.clone()
            else:
                remembered[key] = torch.empty_like(parameter).copy_(value)
