"""What is added to actions so that they explore: for each env and each dimension of the action its own.

Actions are in [-1, 1] here, so that a sigma of 0.1 is a twentieth of the range, whatever the env's own bounds are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class OrnsteinUhlenbeck:
    """Noise that remembers where it was: x <- x - theta x + sigma n, n normal; back to 0 when an episode ends.

    Its standard deviation grows to sigma / sqrt(1 - (1 - theta)^2): 0.38 at the paper's 0.15 and 0.2.

    Args:
        envs: how many.
        dimensions: of an action.
        theta: how fast it forgets, a step.
        sigma: of what is added each step.

    Example:
        >>> noise = OrnsteinUhlenbeck(envs=2, dimensions=3, theta=0.15, sigma=0.2)
        >>> noise.draw(np.random.default_rng(0)).shape
        (2, 3)
    """

    def __init__(self, envs: int, dimensions: int, theta: float, sigma: float) -> None:
        self._theta, self._sigma = theta, sigma
        self._at = np.zeros((envs, dimensions))

    def draw(self, generator: np.random.Generator) -> npt.NDArray[np.float64]:
        """The noise of the next step."""
        self._at = self._at - self._theta * self._at + self._sigma * generator.standard_normal(self._at.shape)
        return self._at.copy()

    def ended(self, envs: list[int]) -> None:
        """Episodes of these envs have ended."""
        self._at[envs] = 0

    def state(self) -> list[Any]:
        """For JSON."""
        return list(self._at.tolist())

    def load(self, state: list[Any]) -> None:
        """Go on from :meth:`state`."""
        loaded = np.array(state, np.float64)
        if loaded.shape != self._at.shape:
            raise ValueError(f"noise: a state of shape {loaded.shape}; this has (envs, dimensions) {self._at.shape}")
        self._at = loaded


class Gaussian:
    """Noise without memory.

    Args:
        envs: how many.
        dimensions: of an action.
        sigma: its standard deviation.
    """

    def __init__(self, envs: int, dimensions: int, sigma: float) -> None:
        self._shape, self._sigma = (envs, dimensions), sigma

    def draw(self, generator: np.random.Generator) -> npt.NDArray[np.float64]:
        """The noise of the next step."""
        return self._sigma * generator.standard_normal(self._shape)

    def ended(self, envs: list[int]) -> None:
        """Nothing to forget."""

    def state(self) -> list[Any]:
        """Nothing to remember."""
        return []

    def load(self, state: list[Any]) -> None:
        """Nothing to go on from."""


Noise = OrnsteinUhlenbeck | Gaussian
