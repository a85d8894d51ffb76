"""Checkpoints: tensors in safetensors, everything else in JSON; written aside, named when whole, verified when read.

Loading runs no code. A checkpoint is two files, ``ckpt-<steps>.safetensors`` and then ``ckpt-<steps>.json``, which has
the checksum of the other: without its JSON a checkpoint does not exist. A replay lies beside them in a store of its
own, of which each checkpoint names the manifest that belongs to it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from fastrl.engine.files import DamagedFile, read_json, write_json, write_private

FORMAT = 1
_NAME = "ckpt-{:012d}"
BEST = "best"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: tensors by name, and the rest as JSON knows it."""

    path: Path
    steps: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


def digest(tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> str:
    """A hash of everything in a checkpoint. Equal ones are equal to the bit."""
    found = hashlib.sha256(_serialised(tensors))
    found.update(json.dumps(state, sort_keys=True).encode())
    return found.hexdigest()


def _serialised(tensors: Mapping[str, torch.Tensor]) -> bytes:
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    return bytes(safetensors.torch.save(plain))


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        directory: made when something is saved.
        keep: how many of the newest stay.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory = directory
        self.keep = keep

    @property
    def replay_directory(self) -> Path:
        """Where the run's replay is saved."""
        return self.directory / "replay"

    @property
    def replay_saves_kept(self) -> int:
        """How many saves of the replay stay: those of the kept checkpoints, and the one that is being made."""
        return self.keep + 1

    def steps_saved(self) -> list[int]:
        """The steps at which there are checkpoints, whole or not, the newest first."""
        found = self.directory.glob("ckpt-" + "[0-9]" * 12 + ".json")
        return sorted((int(path.stem.split("-")[1]) for path in found), reverse=True)

    def save(self, steps: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then forget the oldest. What was saved before stays whole until this one is."""
        path = self._write(_NAME.format(steps), steps, tensors, state)
        for old in self.steps_saved()[self.keep :]:
            # The JSON first: without it the checkpoint is gone, and no half of one is ever found.
            for suffix in (".json", ".safetensors"):
                (self.directory / (_NAME.format(old) + suffix)).unlink(missing_ok=True)
        self._forget_orphans()
        return path

    def save_best(self, steps: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Path:
        """Keep these weights apart from the rotation. The one before stays until these are whole."""
        return self._write(f"{BEST}-{steps:012d}", steps, tensors, state, then=self._forget_other_bests)

    def _write(
        self,
        stem: str,
        steps: int,
        tensors: Mapping[str, torch.Tensor],
        state: Mapping[str, Any],
        then: Callable[[str], None] | None = None,
    ) -> Path:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        content = _serialised(tensors)
        path = self.directory / f"{stem}.json"
        path.unlink(missing_ok=True)  # of the same steps, by an earlier life of this run
        write_private(path.with_suffix(".safetensors"), content)
        described = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        write_json(path, {"format": FORMAT, "steps": steps, "tensors": described, "state": dict(state)})
        if then is not None:
            then(stem)
        return path

    def _forget_other_bests(self, stem: str) -> None:
        for suffix in (".json", ".safetensors"):
            for path in self.directory.glob(f"{BEST}-*{suffix}"):
                if path.stem != stem:
                    path.unlink(missing_ok=True)

    def _forget_orphans(self) -> None:
        """Delete what saves that were cut short have left."""
        for path in self.directory.glob("*.safetensors"):
            if not path.with_suffix(".json").exists():
                path.unlink(missing_ok=True)
        for path in self.directory.glob(".*.part"):
            path.unlink(missing_ok=True)

    def load(self, note: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is whole; None if there is none at all.

        Args:
            note: is told of each newer one that is damaged.

        Raises:
            DamagedFile: there are checkpoints, but none is whole.
        """
        saved = self.steps_saved()
        for steps in saved:
            path = self.directory / f"{_NAME.format(steps)}.json"
            try:
                return read(path)
            except DamagedFile as error:
                note(f"checkpoint at {steps:,} steps is damaged ({error}); trying the one before")
        if saved:
            raise DamagedFile(f"{self.directory}: all {len(saved)} checkpoints are damaged")
        return None

    def load_best(self) -> Checkpoint | None:
        """The weights that evaluated best so far; None before the first evaluation."""
        found = sorted(self.directory.glob(f"{BEST}-" + "[0-9]" * 12 + ".json"), reverse=True)
        return read(found[0]) if found else None


def read(path: Path) -> Checkpoint:
    """One checkpoint, verified.

    Raises:
        DamagedFile: a part of it is missing, cut, changed, or of a format that this version does not read.
    """
    described = read_json(path)
    if described.get("format") != FORMAT:
        raise DamagedFile(f"{path}: has format {described.get('format')!r}, this version of fastrl reads {FORMAT}")
    tensors_path = path.with_suffix(".safetensors")
    try:
        descriptor = os.open(tensors_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as opened:
            said = described["tensors"]
            content = opened.read(int(said["bytes"]) + 1)
        if len(content) != said["bytes"] or hashlib.sha256(content).hexdigest() != said["sha256"]:
            raise DamagedFile(f"{tensors_path}: its checksum is not the one that was saved")
        tensors = safetensors.torch.load(content)
        return Checkpoint(path, int(described["steps"]), tensors, dict(described["state"]))
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        if isinstance(error, DamagedFile):
            raise
        raise DamagedFile(f"{tensors_path}: cannot be read ({error})") from None
