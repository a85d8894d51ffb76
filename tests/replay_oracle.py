"""What a replay must return, the slow and obvious way: lists of everything that was ever written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

GUARD_STEPS = 8  # steps of a full lane that are left alone; stated here once more, on purpose


@dataclass
class Slot:
    """One observation, and the step that led to it."""

    obs: npt.NDArray[Any]
    first: bool
    episode: int
    age: int
    action: Any = 0
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False

    @property
    def last(self) -> bool:
        return self.terminated or self.truncated


@dataclass
class Expected:
    """One transition as a sample must show it."""

    obs: npt.NDArray[Any]
    action: Any
    reward: float
    discount: float
    next_obs: npt.NDArray[Any]


@dataclass
class OracleLane:
    """Everything that one lane was given."""

    slots: list[Slot] = field(default_factory=list)
    episodes: int = 0
    open: bool = False

    def start(self, obs: npt.NDArray[Any]) -> None:
        self.episodes += 1
        self.open = True
        self.slots.append(Slot(obs.copy(), True, self.episodes, 0))

    def append(self, action: Any, reward: float, obs: npt.NDArray[Any], terminated: bool, truncated: bool) -> None:
        assert self.open
        before = self.slots[-1]
        slot = Slot(obs.copy(), False, self.episodes, before.age + 1, action, reward, terminated, truncated)
        self.slots.append(slot)
        self.open = not slot.last

    def break_off(self) -> None:
        """Another writer takes the lane; the episode has no end."""
        self.open = False

    def stack(self, step: int, size: int, padding: str) -> npt.NDArray[Any]:
        newest = self.slots[step]
        have = [self.slots[s].obs for s in range(step - min(newest.age, size - 1), step + 1)]
        missing = size - len(have)
        pad = np.zeros_like(newest.obs) if padding == "zeros" else have[0]
        return np.stack([pad] * missing + have)

    def transition(
        self, step: int, end: int, slots: int, stack: int, n_step: int, gamma: float, padding: str
    ) -> Expected | None:
        """Transition ``step`` of a lane of ``slots`` places of which ``end`` steps are seen; None: not eligible."""
        first = max(0, end - (slots - GUARD_STEPS))
        here = self.slots[step]
        if here.last or step - min(here.age, stack - 1) < first:
            return None
        reward, discount = 0.0, 1.0
        for later in range(step + 1, step + n_step + 1):
            if later >= end or self.slots[later].episode != here.episode:
                return None
            slot = self.slots[later]
            reward += discount * float(np.float32(slot.reward))
            discount *= gamma
            if slot.terminated:
                discount = 0.0
            if slot.last:
                break
        return Expected(
            self.stack(step, stack, padding),
            self.slots[step + 1].action,
            reward,
            discount,
            self.stack(later, stack, padding),
        )

    def eligible(
        self, end: int, slots: int, stack: int, n_step: int, gamma: float, padding: str
    ) -> dict[int, Expected]:
        """Every eligible transition by its step."""
        first = max(0, end - (slots - GUARD_STEPS))
        found = {t: self.transition(t, end, slots, stack, n_step, gamma, padding) for t in range(first, end)}
        return {t: expected for t, expected in found.items() if expected is not None}
