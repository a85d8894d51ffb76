"""Optimisers that torch does not have as the papers used them, or does slowly for one vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor


class FlatOptimiser(ABC):
    """Moves a network whose parameters are one vector: no optimiser of torch's finds its parameters as fast.

    Args:
        values: that it moves.
        gradient: of them, read at each step.
    """

    def __init__(self, values: Tensor, gradient: Tensor) -> None:
        self._values, self._gradient = values, gradient
        self._mean, self._square = torch.zeros_like(values), torch.zeros_like(values)

    @abstractmethod
    def step(self) -> None:
        """Move the values by their gradient."""

    def tensors(self) -> dict[str, Tensor]:
        """All that it remembers."""
        return {"mean": self._mean, "square": self._square}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`tensors`.

        Raises:
            ValueError: they are of another optimiser.
        """
        mine = self.tensors()
        if sorted(mine) != sorted(tensors):
            raise ValueError(
                f"optimiser: its saved state has {', '.join(sorted(tensors)[:4]) or 'nothing'}, and should have "
                f"{', '.join(sorted(mine))}; it was saved by another version of fastrl, which can go on with it"
            )
        for name, tensor in mine.items():
            tensor.copy_(tensors[name])


class FlatCentredRMSProp(FlatOptimiser):
    """RMSProp as DeepMind's DQN code has it: divided by the gradient's standard deviation, epsilon under the root.

    With decay d and gradient g: m = d m + (1-d) g; v = d v + (1-d) g*g; w -= rate * g / sqrt(v - m*m + eps).
    torch's own adds epsilon after the root, which at the paper's 0.01 is another optimiser.

    Args:
        values, gradient: as of :class:`FlatOptimiser`.
        learning_rate, decay, epsilon: of the formula.
    """

    def __init__(self, values: Tensor, gradient: Tensor, learning_rate: float, decay: float, epsilon: float) -> None:
        super().__init__(values, gradient)
        self._learning_rate, self._decay, self._epsilon = learning_rate, decay, epsilon

    @torch.no_grad()
    def step(self) -> None:
        """Move the values by their gradient."""
        gradient, decay = self._gradient, self._decay
        self._mean.lerp_(gradient, 1 - decay)
        self._square.mul_(decay).addcmul_(gradient, gradient, value=1 - decay)
        deviation = torch.addcmul(self._square, self._mean, self._mean, value=-1).add_(self._epsilon).sqrt_()
        self._values.addcdiv_(gradient, deviation, value=-self._learning_rate)


class FlatAdam(FlatOptimiser):
    """Adam (Kingma & Ba 2015): torch's fused kernel and nothing around it.

    The same bits as ``torch.optim.Adam(fused=True)``, which for a small network takes longer to find its parameters
    than to move them.

    Args:
        values, gradient: as of :class:`FlatOptimiser`.
        learning_rate: of the steps; decay rates are the paper's.
        epsilon: after the root.
    """

    def __init__(self, values: Tensor, gradient: Tensor, learning_rate: float, epsilon: float = 1e-8) -> None:
        super().__init__(values, gradient)
        self.learning_rate, self._epsilon = learning_rate, epsilon
        self._updates = torch.zeros((), device=values.device)

    @torch.no_grad()
    def step(self) -> None:
        """Move the values by their gradient."""
        self._updates += 1
        torch._fused_adam_(
            [self._values], [self._gradient], [self._mean], [self._square], [], [self._updates],
            lr=self.learning_rate, beta1=0.9, beta2=0.999, eps=self._epsilon, weight_decay=0.0, amsgrad=False,
            maximize=False,
        )  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """All that it remembers."""
        return {**super().tensors(), "updates": self._updates}
