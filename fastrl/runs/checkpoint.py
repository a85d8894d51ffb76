"""Checkpoints: tensors in safetensors, everything else in JSON; written aside, named when whole, verified when read.

Loading runs no code. A checkpoint is two files, first ``ckpt-<steps>-<hash>.safetensors``, then ``ckpt-<steps>.json``,
which names the other and has its checksum: without its JSON a checkpoint does not exist. A replay lies beside them in a
store of its own, of which each checkpoint names the manifest that belongs to it, and which loses only what no
checkpoint names any more.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from fastrl.engine.files import (
    DamagedFile,
    forget_leftovers,
    make_private_directory,
    read_json,
    read_regular,
    write_json,
    write_private,
)
from fastrl.engine.saved_replays import check_saved_replay, forget_replays

FORMAT = 1
BEST = "best"
_ANY = "-" + "[0-9]" * 12 + ".json"
_TENSORS_NAME = re.compile(r"[a-z]+-\d{12}-[0-9a-f]{16}\.safetensors")
_REPLAY_NAME = re.compile(r"replay(-\d+)?/replay-\d{8}\.json")
_MOST_STEPS = 10**12 - 1  # that fit into a name


class UnknownFormat(ValueError):
    """A checkpoint of another version of fastrl: no damage, so none before it is taken in its stead."""


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
    seen: set[tuple[int, int]] = set()
    for name, tensor in plain.items():  # what layers share is saved with each: the format knows no sharing
        place = (tensor.data_ptr(), tensor.numel())
        if place in seen:
            plain[name] = tensor.clone()
        seen.add(place)
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

    # ---- what there is

    def path_of(self, steps: int, kind: str = "ckpt") -> Path:
        """Where the checkpoint of ``steps`` is, or would be; ``kind`` is "ckpt" or :data:`BEST`."""
        return self.directory / f"{kind}-{steps:012d}.json"

    def steps_saved(self, kind: str = "ckpt") -> list[int]:
        """The steps at which there are checkpoints, whole or not, the newest first."""
        return sorted((int(path.stem.split("-")[1]) for path in self.directory.glob(kind + _ANY)), reverse=True)

    def replay_directory(self, replay_save: Path | None) -> Path:
        """Where a run saves its replay that went on with ``replay_save``; None: with an empty one, so in a new store.

        A save adds to what is there, and refuses to where that is another replay.
        """
        if replay_save is not None:
            return replay_save.parent
        names = itertools.chain(["replay"], (f"replay-{number}" for number in itertools.count(2)))
        taken = {path.name for path in self.directory.glob("replay*")}
        return self.directory / next(name for name in names if name not in taken)

    # ---- saving

    def save(self, steps: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then forget the oldest. What was saved before stays whole until this one is.

        Args:
            steps: that it was made at.
            tensors: of any kind and number.
            state: plain values; under ``replay`` the manifest that belongs to it, relative to ``directory``.
        """
        path = self._write(self.path_of(steps), steps, tensors, state)
        self.forget_after(steps)
        for old in self.steps_saved()[self.keep :]:
            self.path_of(old).unlink(missing_ok=True)
        self.tidy()
        return path

    def save_best(self, steps: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Path:
        """Keep these weights apart from the rotation. The ones before stay until these are whole."""
        path = self._write(self.path_of(steps, BEST), steps, tensors, state)
        for other in self.steps_saved(BEST):
            if other != steps:
                self.path_of(other, BEST).unlink(missing_ok=True)
        self.tidy()
        return path

    def _write(self, path: Path, steps: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Path:
        if not 0 <= steps <= _MOST_STEPS:
            raise ValueError(f"save: {steps} steps are outside [0, {_MOST_STEPS:,}]")
        make_private_directory(self.directory)
        content = _serialised(tensors)
        sha256 = hashlib.sha256(content).hexdigest()
        # The name is the content's: a checkpoint of the same steps, by an earlier life of this run, stays whole until
        # the JSON, which is replaced at once, names these tensors.
        name = f"{path.stem}-{sha256[:16]}.safetensors"
        described = {"file": name, "bytes": len(content), "sha256": sha256}
        try:
            write_private(self.directory / name, content)
            write_json(path, {"format": FORMAT, "steps": steps, "tensors": described, "state": dict(state)})
        except OSError:
            with contextlib.suppress(OSError):
                self.tidy()  # what was written takes space that the next save needs
            raise
        return path

    # ---- forgetting

    def forget_after(self, steps: int) -> None:
        """Delete checkpoints of more steps: of a future that a run which went on from ``steps`` does not have."""
        for newer in self.steps_saved():
            if newer > steps:
                self.path_of(newer).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Delete what no checkpoint names: replaced tensors and replays, and what saves that were cut short left.

        A JSON that cannot be read may have named anything, so what could be its own stays.
        """
        named: set[str] = set()
        replays: set[str] = set()
        unreadable: list[str] = []
        for path in [*self.directory.glob("ckpt" + _ANY), *self.directory.glob(BEST + _ANY)]:
            try:
                described = read_json(path)
                named.add(described["tensors"]["file"])
                replays.add(str(described["state"].get("replay")))
            except (DamagedFile, KeyError, TypeError, AttributeError):
                unreadable.append(path.stem)
        for path in self.directory.glob("*.safetensors"):
            if path.name not in named and not path.name.startswith(tuple(unreadable)):
                path.unlink(missing_ok=True)
        # A result beside a snapshot is another process's, and may be under way.
        forget_leftovers(self.directory, (".json", ".safetensors"))
        if not unreadable:
            for directory in self.directory.glob("replay*"):
                forget_replays(directory, {name.partition("/")[2] for name in replays if _in(name, directory)})

    # ---- loading

    def load(self, note: Callable[[str], None], *, with_replay: bool = False) -> Checkpoint | None:
        """The newest checkpoint that is whole; None if there is none at all.

        Args:
            note: is told of each newer one that is damaged.
            with_replay: its replay, if it names one, is to be whole too.

        Raises:
            DamagedFile: there are checkpoints, but none is whole.
            UnknownFormat: the newest one that is whole is of another version of fastrl.
        """
        saved = self.steps_saved()
        weights_at: int | None = None  # of the newest checkpoint that lacks only its replay
        for steps in saved:
            try:
                found = read(self.path_of(steps))
                if with_replay and found.state.get("replay") is not None:
                    weights_at = steps if weights_at is None else weights_at
                    check_saved_replay(self.replay_save(found))
                return found
            except DamagedFile as error:
                note(f"checkpoint at {steps:,} steps is damaged ({error})")
        if not saved:
            return None
        raise DamagedFile(
            f"{self.directory}: no checkpoint is whole ({len(saved)} damaged)"
            + (
                "; restore one from a copy, or start a new run"
                if weights_at is None
                else f"; the one at {weights_at:,} steps lacks only its replay: --resume-without-replay goes on from it"
            )
        )

    def replay_save(self, found: Checkpoint) -> Path:
        """The manifest of the replay that belongs to a checkpoint which has one.

        Raises:
            DamagedFile: the checkpoint names something else.
        """
        name = found.state["replay"]
        if not isinstance(name, str) or not _REPLAY_NAME.fullmatch(name):
            raise DamagedFile(f"{found.path}: names {str(name)[:80]!r} as its replay, which is no manifest's name")
        return self.directory / name

    def load_best(self) -> Checkpoint | None:
        """The weights that evaluated best so far; None before the first evaluation."""
        found = self.steps_saved(BEST)
        return read(self.path_of(found[0], BEST)) if found else None


def _in(name: str, directory: Path) -> bool:
    return name.startswith(f"{directory.name}/")


def read(path: Path) -> Checkpoint:
    """One checkpoint, verified.

    Raises:
        DamagedFile: a part of it is missing, cut or changed.
        UnknownFormat: this version of fastrl does not read it.
    """
    described = read_json(path)
    if described.get("format") != FORMAT:
        raise UnknownFormat(
            f"{path}: has format {str(described.get('format'))[:40]}, this version of fastrl reads {FORMAT}"
        )
    try:
        said, steps, state = described["tensors"], described["steps"], described["state"]
        name, size, sha256 = said["file"], said["bytes"], said["sha256"]
        if not _TENSORS_NAME.fullmatch(name) or not isinstance(state, dict):
            raise DamagedFile(f"{path}: names {str(name)[:80]!r} as its tensors, or has no state")
        if type(steps) is not int or path.stem.split("-")[1] != f"{steps:012d}":
            raise DamagedFile(f"{path}: says that it was made at {str(steps)[:40]} steps")
        if type(size) is not int or size < 0:
            raise DamagedFile(f"{path}: says that its tensors have {str(size)[:40]} bytes")
    except (KeyError, TypeError, IndexError) as error:
        raise DamagedFile(f"{path}: is no checkpoint ({type(error).__name__}: {error})") from None
    tensors_path = path.with_name(name)
    content = read_regular(tensors_path, size)
    if len(content) != size or hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedFile(f"{tensors_path}: its checksum is not the one that was saved")
    try:
        tensors = safetensors.torch.load(content)
    except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise DamagedFile(f"{tensors_path}: cannot be read ({error})") from None
    return Checkpoint(path, steps, tensors, state)


def forget(path: Path) -> None:
    """Delete one checkpoint, given its JSON, which goes first: without it no half of one is ever found."""
    path.unlink(missing_ok=True)
    for tensors in path.parent.glob(f"{path.stem}-*.safetensors"):
        tensors.unlink(missing_ok=True)
