"""What a network answers to observations that the host has; on a GPU by page-locked memory and a captured graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrl.learn.graphs import Captured


class Answers:
    """Asks ``network``; on a GPU it waits for the answer and nothing else.

    Args:
        network: observations to answers, both with a row for each env.
        device: where it is.
        staged: whether observations go through memory that stays where it is; default: on a GPU. Then all calls are for
            as many rows as the first one.

    Example:
        >>> Answers(lambda obs: obs.float() * 2, torch.device("cpu"))(np.ones((2, 1), np.uint8)).tolist()
        [[2.0], [2.0]]
    """

    def __init__(
        self, network: Callable[[Tensor], Tensor], device: torch.device, *, staged: bool | None = None
    ) -> None:
        self._network, self._device = network, device
        self._staged = device.type != "cpu" if staged is None else staged
        self._steps = Captured(self._answer, device)
        self._places: tuple[Tensor, Tensor, Tensor, Tensor] | None = None  # obs here and there, answers there and here

    @torch.no_grad()
    def __call__(self, obs: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Answers to ``obs``."""
        given = torch.from_numpy(obs)
        if not self._staged:
            return self._network(given).numpy()
        obs_here, obs_there, answers_there, answers_here = self._places = self._places or self._make_places(given)
        obs_here.copy_(given)
        obs_there.copy_(obs_here, non_blocking=True)
        self._steps()
        answers_here.copy_(answers_there, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return answers_here.numpy().copy()

    def _make_places(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        locked = self._device.type == "cuda"
        there = obs.to(self._device)
        answers = self._network(there)
        return (
            torch.empty(obs.shape, dtype=obs.dtype, pin_memory=locked),
            there.clone(),
            torch.empty_like(answers),
            torch.empty(answers.shape, dtype=answers.dtype, pin_memory=locked),
        )

    def _answer(self) -> None:
        assert self._places is not None
        with torch.no_grad():
            self._places[2].copy_(self._network(self._places[1]))
