"""A trained network as something that acts, built from what a checkpoint says, without its algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor, nn

from fastrl.engine.recorded_envs import action_scaling
from fastrl.learn.networks import build, under

_ACTS = ("greedy", "sample", "continuous")


def sampled(logits: npt.NDArray[Any], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """An action for each row, with the probabilities that ``logits`` stand for; one random number a row.

    >>> sampled(np.array([[0.0, -100.0], [-100.0, 0.0]]), np.random.default_rng(0)).tolist()
    [0, 1]
    """
    return drawn(np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True)), generator)


def drawn(weights: npt.NDArray[np.float64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """A column for each row, as often as its weight says; one random number a row."""
    cumulative = weights.cumsum(1)
    points = generator.random(len(cumulative))[:, None] * cumulative[:, -1:]
    columns: npt.NDArray[np.int64] = (cumulative <= points).sum(1).clip(max=cumulative.shape[1] - 1)
    return columns


class Policy:
    """Acts on stacks of observations as a run's network would.

    Args:
        description: what the trainer stored: ``network``, ``prefix`` (of the network's tensors) and ``acts``:
            "greedy" on action values, "sample" from logits, or "continuous": actions in [-1, 1], which are scaled to
            the Box of the env's actions (``low``, ``high``, ``dtype``).
        tensors: of a checkpoint.
        device: where the network runs.
        factory: makes the network, where it is the user's own.

    Example:
        >>> network = {"kind": "q", "torso": "mlp", "obs_shape": [1, 4], "hidden_units": [8], "num_actions": 2}
        >>> tensors = {f"online.{k}": v for k, v in build(network, [0]).state_dict().items()}
        >>> policy = Policy({"network": network, "prefix": "online.", "acts": "greedy"}, tensors)
        >>> policy.act(np.zeros((3, 1, 4), np.float32)).shape
        (3,)
    """

    def __init__(
        self,
        description: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        device: str = "cpu",
        factory: Callable[[dict[str, Any]], nn.Module] | None = None,
    ) -> None:
        self.description = dict(description)
        network = dict(description["network"])
        self.obs_shape: tuple[int, ...] = tuple(network["obs_shape"])
        self.num_actions = int(network.get("num_actions", 0))  # 0: numbers instead of choices
        self.device = torch.device(device)
        self.acts = str(description["acts"])
        if self.acts not in _ACTS:
            raise ValueError(f"policy: acts {self.acts!r} is unknown to this version of fastrl; known: {_ACTS}")
        if self.acts == "continuous":
            dtype = np.dtype(description["dtype"])
            low, high = (np.asarray(description[name], dtype) for name in ("low", "high"))
            self._box = spaces.Box(low, high, dtype=dtype.type)
            self._to_env = action_scaling(self._box)
        # Of policies that are random by themselves, where the caller brings no generator.
        self._generator = np.random.default_rng(0)
        self.network = build(network, factory=factory)
        self.network.load_state_dict(under(str(description["prefix"]), tensors))
        self.network.to(self.device).eval()

    def values(self, obs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """What the network says of each observation: values or logits of its actions, or its actions in [-1, 1].

        Args:
            obs: (n, *obs_shape).
        """
        if obs.shape[1:] != self.obs_shape:
            raise ValueError(f"act: observations have shape {obs.shape}, expected (n, {self.obs_shape}) or one of them")
        with torch.inference_mode():
            found = self.network(torch.from_numpy(np.ascontiguousarray(obs)).to(self.device))
            found = found[0] if isinstance(found, tuple) else found  # logits, and values that nobody acts by
            values: npt.NDArray[np.float32] = found.float().cpu().numpy()
        return values

    def choose(
        self, values: npt.NDArray[np.float32], epsilon: float = 0.0, generator: np.random.Generator | None = None
    ) -> npt.NDArray[Any]:
        """An action by each row of what :meth:`values` gave, or at random as ``epsilon`` says."""
        if not 0 <= epsilon <= 1:
            raise ValueError(f"act: epsilon {epsilon!r} is outside [0, 1]; it is how often an action is random")
        if epsilon > 0 and generator is None:
            raise ValueError("act: epsilon above 0 needs a generator, numpy.random.default_rng(seed) for example")
        generator = self._generator if generator is None else generator
        if self.acts == "continuous":
            if epsilon > 0:
                random = generator.random(len(values)) < epsilon
                values = np.where(random[:, None], generator.uniform(-1, 1, values.shape), values)
            return self._to_env(values.reshape(-1, *self._box.shape))
        actions = sampled(values, generator) if self.acts == "sample" else values.argmax(1)
        if epsilon > 0:
            random = generator.random(len(actions)) < epsilon
            actions = np.where(random, generator.integers(self.num_actions, size=len(actions)), actions)
        return actions

    def act(self, obs: npt.NDArray[Any], epsilon: float = 0.0, generator: np.random.Generator | None = None) -> Any:
        """An action for each observation; a single observation gets a single action.

        Args:
            obs: (n, *obs_shape), or one of obs_shape.
            epsilon: how often to act at random; needs a ``generator``.
            generator: of what is random.
        """
        given = np.asarray(obs)
        single = given.shape == self.obs_shape
        actions = self.choose(self.values(given[None] if single else given), epsilon, generator)
        return actions[0] if single else actions
