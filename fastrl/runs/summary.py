"""What of a row of metrics is worth showing while a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from fastrl.runs import units

Row = Mapping[str, float | int | None]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A row of metrics.csv, ready to be shown; None is "not known"."""

    total_steps: int
    frames: int
    steps: int
    updates: int
    wall_s: float
    frames_per_s: float | None
    steps_per_s: float | None
    updates_per_s: float | None
    return_mean: float | None
    return_smoothed: float | None
    games: int
    exploration_name: str | None  # None: this trainer tells of none
    exploration: float | None
    loss_name: str
    loss: float | None
    replay_fill: float | None
    memory_mb: float | None
    shares: Mapping[str, float]
    evaluation: str
    best: str

    @classmethod
    def of(
        cls, row: Row, shares: Mapping[str, float], total_steps: int, evaluation: Row | None, best: Row | None
    ) -> Self:
        """From rows of metrics.csv and evaluations.csv."""
        loss_name = "loss" if "loss" in row else next((name for name in row if "loss" in name), "loss")
        exploration_name = next((name for name in ("epsilon", "entropy") if name in row), None)
        return cls(
            total_steps=total_steps,
            frames=int(row.get("frames") or 0),
            steps=int(row.get("steps") or 0),
            updates=int(row.get("updates") or 0),
            wall_s=row.get("wall_s") or 0.0,
            frames_per_s=row.get("frames_per_s"),
            steps_per_s=row.get("steps_per_s"),
            updates_per_s=row.get("updates_per_s"),
            return_mean=row.get("return_mean_100"),
            return_smoothed=row.get("return_smoothed"),
            games=int(row.get("games") or 0),
            exploration_name=exploration_name,
            exploration=row.get(exploration_name) if exploration_name else None,
            loss_name=loss_name.replace("_", " "),
            loss=row.get(loss_name),
            replay_fill=row.get("replay_fill"),
            memory_mb=row.get("memory_mb"),
            shares=dict(sorted(shares.items(), key=lambda item: (item[0] == "other", -item[1]))),
            evaluation=_evaluated(evaluation),
            best=_evaluated(best),
        )

    @property
    def done(self) -> float:
        """How much of the run is done, 0 to 1."""
        return min(1.0, self.steps / self.total_steps) if self.total_steps else 1.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at the speed of the last interval."""
        left = max(0, self.total_steps - self.steps)
        return left / self.steps_per_s if self.steps_per_s else None

    @property
    def limiting(self) -> str | None:
        """The stage that takes the most time."""
        return max((name for name in self.shares if name != "other"), key=self.shares.__getitem__, default=None)


def _evaluated(evaluation: Row | None) -> str:
    if evaluation is None:
        return units.MISSING
    return f"{units.measured(evaluation.get('mean'))} at {units.count(evaluation.get('steps'))} steps"
