"""Optimisers that torch does not have as the papers used them, or does slowly for one vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


class FlatAdam:
    """Adam (Kingma & Ba 2015) of a network whose parameters are one vector: torch's fused kernel and nothing around it.

    The same bits as ``torch.optim.Adam(fused=True)``, which for a small network takes longer to find its parameters
    than to move them.

    Args:
        values: that it moves.
        gradient: of them, read at each step.
        learning_rate: of the steps; decay rates and epsilon are the paper's.
    """

    def __init__(self, values: Tensor, gradient: Tensor, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self._values, self._gradient = values, gradient
        self._mean, self._square = torch.zeros_like(values), torch.zeros_like(values)
        self._updates = torch.zeros((), device=values.device)

    @torch.no_grad()
    def step(self) -> None:
        """Move the values by their gradient."""
        self._updates += 1
        torch._fused_adam_(
            [self._values], [self._gradient], [self._mean], [self._square], [], [self._updates],
            lr=self.learning_rate, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False,
        )  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """All that it remembers."""
        return {"mean": self._mean, "square": self._square, "updates": self._updates}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`tensors`."""
        for name, mine in self.tensors().items():
            mine.copy_(tensors[name])


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
