"""Run directories as a report reads them, and which of them are seeds of the same thing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrl.engine.games import find_game
from fastrl.engine.recorded_envs import is_atari
from fastrl.runs.run_dir import FORMAT
from fastrl.runs.tables import read_columns, without_redone

# What the runs of one group may differ in: their seeds, and what shapes neither learning nor its measurement. The
# device and the precision are not among it, though they should not matter: that is what a report can show. How many
# steps were wished for changes nothing before they are reached; how many were taken is shown.
_NO_SETTING = frozenset({
    "seed", "seeds", "name", "runs", "steps", "threads", "torch_threads", "tensorboard", "histograms",
    "log_every_steps", "checkpoint_every_minutes", "checkpoint_every_steps", "keep_checkpoints", "checkpoint_replay",
    "evaluate_every_steps", "evaluation_episodes",
})  # fmt: skip

# A label names at least so many of the settings that groups differ in.
_NAMED_SETTINGS = 3

_PLACES = ("frames", "steps", "wall_s")  # columns that every row of metrics.csv fills

_EXPECTED = "expected config.json and metrics.csv, as every fastrl trainer writes them into runs/<name>/"


@dataclass(frozen=True)
class Run:
    """What a report needs of one run directory."""

    path: Path
    algorithm: str
    env: str
    game: str | None  # the Atari game as ale-py writes it; None: another environment
    seed: int | None
    finished: bool
    protocol: str | None  # the name of its Atari rules
    setting: dict[str, Any]  # all that must be equal in the runs of a group
    metrics: dict[str, np.ndarray]
    evaluations: dict[str, np.ndarray] | None  # None: it was not evaluated

    def last(self, column: str) -> float:
        """The last value of a metric that was measured; nan if none was."""
        values = self.metrics.get(column, np.empty(0))
        values = values[~np.isnan(values)]
        return float(values[-1]) if len(values) else float("nan")


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seeds."""

    label: str
    runs: tuple[Run, ...]

    @property
    def env(self) -> str:
        """The environment of all its runs."""
        return self.runs[0].env


def read_run(path: str | Path) -> Run:
    """Read one run directory; a live one too.

    Raises:
        FileNotFoundError: it lacks config.json.
        ValueError: they are damaged, of a newer format, or not of fastrl.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"read_run: {path} has no config.json and so is no run; {_EXPECTED}")
    stored = _stored_config(path / "config.json")
    finished = bool(stored.get("finished", False))
    if (path / "metrics.csv").is_file():
        metrics = without_redone(_with_columns(path / "metrics.csv", *_PLACES))
    else:  # it has just begun, or was too short for a row
        metrics = {name: np.empty(0) for name in _PLACES}
    evaluations = None
    if (path / "evaluations.csv").is_file():
        evaluations = _with_columns(path / "evaluations.csv", "frames", "steps", "mean", "std")
    config: dict[str, Any] = stored["config"]
    # The fingerprint is of every rule, the cartridge and the emulator, and so says more than the protocol's name.
    setting = {"algorithm": stored["algorithm"], "rules": stored.get("rules_fingerprint"), **_flat(config)}
    env = str(config["env"])
    game = find_game(env).name if is_atari(env) else None
    named = config.get("protocol")
    return Run(
        path=path,
        algorithm=str(stored["algorithm"]),
        env=env,
        game=game,
        seed=config.get("seed"),
        finished=finished,
        protocol=str(named) if game and named else None,
        setting={k: v for k, v in setting.items() if k not in _NO_SETTING},
        metrics=metrics,
        evaluations=evaluations if evaluations and not np.isnan(evaluations["mean"]).all() else None,
    )


def find_runs(paths: Iterable[str | Path]) -> list[Run]:
    """The runs that ``paths`` name: run directories, or folders with run directories anywhere below.

    Raises:
        FileNotFoundError: a path does not exist, or there is no run in it.
        ValueError: a run is damaged. It is not passed over: results without the runs that broke would look too good.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise FileNotFoundError(f"find_runs: {path} {what}; expected a run directory, or a folder of such ones")
        inside = [path] if (path / "config.json").is_file() else [f.parent for f in sorted(path.rglob("config.json"))]
        if not inside:
            raise FileNotFoundError(f"find_runs: {path} holds no run; {_EXPECTED}")
        for directory in inside:
            found.setdefault(directory.resolve(), directory)
    return [read_run(directory) for directory in found.values()]


def grouped(runs: Iterable[Run]) -> tuple[list[Group], list[str]]:
    """Runs of equal settings together, in the order of their environments, and notes on what was left out.

    A label names the algorithm and, where it was run on an environment with several settings, what they differ in.
    Of two runs with the same seed only the longer counts: they are no independent samples.
    """
    by_setting: dict[str, list[Run]] = {}
    for run in runs:
        by_setting.setdefault(json.dumps(run.setting, sort_keys=True, default=str), []).append(run)
    notes: list[str] = []
    members = [_one_run_a_seed(same, notes) for same in by_setting.values()]
    labels = _labels([same[0] for same in members])
    groups = [Group(label, tuple(same)) for label, same in zip(labels, members, strict=True)]
    return sorted(groups, key=lambda group: (group.env, group.label)), notes


def _stored_config(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"read_run: {path} is damaged ({error}); restore it, or leave this run out") from None
    if not (isinstance(stored, dict) and {"format", "algorithm", "config"} <= stored.keys()):
        raise ValueError(f"read_run: {path} was not written by a fastrl trainer; {_EXPECTED}")
    if stored["format"] != FORMAT:
        raise ValueError(f"read_run: {path} has format {stored['format']}, this fastrl reads {FORMAT}; update fastrl")
    if not (isinstance(stored["config"], dict) and "env" in stored["config"]):
        raise ValueError(f"read_run: {path} names no env in its config; the file is damaged")
    return stored


def _with_columns(path: Path, *needed: str) -> dict[str, np.ndarray]:
    columns = read_columns(path)
    missing = [name for name in needed if name not in columns]
    if missing:
        raise ValueError(f"read_run: {path} has no column {', '.join(missing)}; it has {', '.join(columns)}")
    return columns


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _one_run_a_seed(runs: list[Run], notes: list[str]) -> list[Run]:
    kept: dict[Any, Run] = {}
    for run in sorted(runs, key=lambda r: -np.nan_to_num(r.last("steps"))):
        # Runs that state no seed are taken for different ones.
        first = kept.setdefault(run.path if run.seed is None else run.seed, run)
        if first is not run:
            notes.append(f"{run.path} left out: {first.path} is the same setting and seed {run.seed}, and not shorter")
    return sorted(kept.values(), key=lambda r: (r.seed is None, r.seed if r.seed is not None else 0, str(r.path)))


def _labels(runs: list[Run]) -> list[str]:
    """A label for each group, of which ``runs`` holds one each."""
    labels: list[str] = []
    taken: Counter[tuple[str, str]] = Counter()
    for run in runs:
        rivals = [other.setting for other in runs if (other.algorithm, other.env) == (run.algorithm, run.env)]
        # A preset's name stands for many settings, so it comes first where others say no more.
        keys = sorted({key for setting in rivals for key in setting}, key=lambda key: (key != "preset", key))
        differing = [key for key in keys if len({json.dumps(s.get(key), default=str) for s in rivals}) > 1]
        if "protocol" in differing and "rules" in differing:  # the name says it
            differing.remove("rules")
        telling = _telling(rivals, differing)
        ordered = telling + [key for key in differing if key not in telling]
        named = ordered[: max(_NAMED_SETTINGS, len(telling))]
        shown = [f"{key}={run.setting.get(key)}" for key in named]
        if len(ordered) > len(named):
            shown.append(f"and {len(ordered) - len(named)} more")
        label = run.algorithm + (f" ({', '.join(shown)})" if shown else "")
        taken[run.env, label] += 1
        labels.append(label if taken[run.env, label] == 1 else f"{label} #{taken[run.env, label]}")
    return labels


def _telling(settings: list[dict[str, Any]], keys: list[str]) -> list[str]:
    """Those of ``keys`` that tell all ``settings`` apart, the one that tells most apart first."""

    def classes(chosen: list[str]) -> int:
        return len({json.dumps([s.get(key) for key in chosen], default=str) for s in settings})

    found: list[str] = []
    while keys and classes(found) < classes(keys):
        found.append(min(keys, key=lambda key: -classes([*found, key])))
    return found
