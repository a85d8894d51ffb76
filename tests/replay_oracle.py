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

    def end_of(self, step: int, end: int, slots: int, stack: int, n_step: int) -> int | None:
        """Where transition ``step`` ends, in a lane of ``slots`` places of which ``end`` steps are seen.

        None: it is not eligible.
        """
        here = self.slots[step]
        if here.last or step - min(here.age, stack - 1) < self.first(end, slots):
            return None
        for later in range(step + 1, step + n_step + 1):
            if later >= end or self.slots[later].episode != here.episode:
                return None
            if self.slots[later].last:
                break
        return later

    def transition(
        self, step: int, end: int, slots: int, stack: int, n_step: int, gamma: float, padding: str
    ) -> Expected | None:
        """Transition ``step`` as a sample must show it."""
        last = self.end_of(step, end, slots, stack, n_step)
        if last is None:
            return None
        reward, discount = 0.0, 1.0
        for slot in self.slots[step + 1 : last + 1]:
            reward += discount * float(np.float32(slot.reward))
            discount *= gamma
            if slot.terminated:
                discount = 0.0
        return Expected(
            self.stack(step, stack, padding),
            self.slots[step + 1].action,
            reward,
            discount,
            self.stack(last, stack, padding),
        )

    @staticmethod
    def first(end: int, slots: int) -> int:
        """The oldest step that is seen."""
        return max(0, end - (slots - GUARD_STEPS))

    def eligible_steps(self, end: int, slots: int, stack: int, n_step: int) -> list[int]:
        """The steps of every eligible transition."""
        seen = range(self.first(end, slots), end)
        return [step for step in seen if self.end_of(step, end, slots, stack, n_step) is not None]

    def eligible(
        self, end: int, slots: int, stack: int, n_step: int, gamma: float, padding: str
    ) -> dict[int, Expected]:
        """Every eligible transition by its step."""
        steps = range(self.first(end, slots), end)
        found = {t: self.transition(t, end, slots, stack, n_step, gamma, padding) for t in steps}
        return {t: expected for t, expected in found.items() if expected is not None}
