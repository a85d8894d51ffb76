"""Settings that were found to be fastest on a machine: ``fastrl profile`` writes them, ``--tuned`` takes them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from fastrl.engine.files import DamagedFile, read_json, write_json

FORMAT = 1
# What may be in such a file. The first two change the speed (and torch's bits) only, the others also how a run learns.
SETTINGS = ("threads", "torch_threads", "num_envs", "workers", "envs_per_worker")
_OF_A_MACHINE = {"cpu": "CPU", "usable_cores": "usable cores", "gpu": "GPU"}  # what decides which are fastest


def write_tuned(path: Path, algorithm: str, env: str, machine: dict[str, Any], settings: dict[str, int]) -> None:
    """Keep settings."""
    content = {"format": FORMAT, "algorithm": algorithm, "env": env, "machine": machine, "settings": settings}
    write_json(path, content)


def with_tuned(config: Any, path: Path, algorithm: str) -> Any:
    """``config`` with the settings of a file.

    Raises:
        ValueError: there is none, or it is for another algorithm.
    """
    try:
        found = read_json(path)
    except DamagedFile as error:
        raise ValueError(
            f"tuned: {error}; it is to be a file that fastrl profile --algo {algorithm} --output FILE wrote"
        ) from None
    if found.get("format") != FORMAT or found.get("algorithm") != algorithm:
        raise ValueError(
            f"tuned: {path} is for {found.get('algorithm')!r} (format {found.get('format')!r}), this is {algorithm!r} "
            f"(format {FORMAT}); fastrl profile --algo {algorithm} --output {path} writes one that fits"
        )
    settings = found.get("settings")
    names = {field.name for field in dataclasses.fields(config)} & set(SETTINGS)
    if not isinstance(settings, dict) or not set(settings) <= names or not isinstance(found.get("env"), str):
        raise ValueError(f"tuned: {path} has settings {json.dumps(settings)[:200]}; {algorithm} takes {sorted(names)}")
    return dataclasses.replace(config, **settings)


def tuned_line(config: Any, path: Path, here: dict[str, Any]) -> str:
    """What of ``config`` is from a file, and what it was measured with, where that was another env or machine.

    Args:
        config: of the run.
        path: the file.
        here: this machine, as :func:`fastrl.runs.run_dir.machine` tells it.
    """
    found = read_json(path)
    taken = [f"{name} {value}" for name, value in found["settings"].items() if getattr(config, name) == value]
    line = f"tuned by {path.name}: {', '.join(taken) or 'nothing, every setting was given'}"
    env = found.get("env")
    if env != config.env:
        line += f"; that was measured with {env}, and {config.env} may be fastest with others"
    there = found.get("machine")
    there = there if isinstance(there, dict) else {}
    other = [name for name in _OF_A_MACHINE if name in there and there[name] != here[name]]
    if other:
        those = (", ".join(f"{_OF_A_MACHINE[name]} {of[name]}" for name in other) for of in (there, here))
        line += "; that was measured on another machine ({}; here: {}), which may be fastest with others".format(*those)
    return line
