"""Run directories as trainers leave them, with curves that look like learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fastrl.engine.protocol import protocol


def write_run(
    path: Path,
    *,
    algorithm: str = "dqn",
    env: str = "PongNoFrameskip-v4",
    seed: int = 1,
    config: dict[str, Any] | None = None,
    rules: str | None = "nature",
    frames: int = 10_000_000,
    rows: int = 400,
    begin: float = -20.7,
    end: float = 18.9,
    middle: float = 0.4,  # when half of it is learned, as a share of all frames
    noise: float = 0.8,
    frames_per_s: float = 2500.0,
    evaluations: int = 5,
    finished: bool = True,
) -> Path:
    """Write one run; the same arguments write the same bytes."""
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True)
    stored = {
        "format": 1,
        "algorithm": algorithm,
        "config": {
            "env": env,
            "seed": seed,
            "name": path.name,
            "learning_rate": 0.00025,
            **({"protocol": rules} if rules else {}),
            **(config or {}),
        },
        "command": ["fastrl", algorithm, "--env", env],
        "rules_fingerprint": f"pong/{rules}/{protocol(rules).fingerprint()}" if rules else None,
        "finished": finished,
    }
    (path / "config.json").write_text(json.dumps(stored))
    # Every seed learns at another moment, to another height.
    middle, end = middle * rng.uniform(0.75, 1.3), begin + (end - begin) * rng.uniform(0.85, 1.05)
    at = np.sort(rng.uniform(0, frames, rows - 1)).round(-2)
    at = np.append(np.maximum(at, 4000), frames)

    def level(where: np.ndarray) -> np.ndarray:
        return begin + (end - begin) / (1 + np.exp(-(where / frames - middle) / 0.07))

    wander = np.convolve(rng.normal(0, noise, rows + 30), np.ones(31) / 5.5, "valid")
    lines = ["frames,steps,updates,wall_s,return_mean_100,loss"]
    for i, (frame, value) in enumerate(zip(at, level(at) + wander, strict=True)):
        shown = "" if i < 2 else f"{value:.3f}"  # no game has ended yet
        lines.append(
            f"{frame:.0f},{frame / 4:.0f},{frame / 16:.0f},{frame / frames_per_s:.1f},{shown},{0.01 + 0.001 * i:.4f}"
        )
    (path / "metrics.csv").write_text("\n".join(lines) + "\n")
    if evaluations:
        lines = ["frames,steps,updates,wall_s,episodes,epsilon,mean,median,std,min,max,hns,seconds"]
        for frame in np.linspace(0, frames, evaluations + 1)[1:]:
            mean = float(level(np.array([frame]))[0] + rng.normal(0, noise))
            place = f"{frame:.0f},{frame / 4:.0f},{frame / 16:.0f},{frame / frames_per_s:.1f}"
            lines.append(f"{place},30,0.05,{mean:.3f},{mean:.1f},1.5,,,,20")
        (path / "evaluations.csv").write_text("\n".join(lines) + "\n")
    return path
