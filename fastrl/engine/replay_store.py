"""A replay on disk: files of slots that are written once, and manifests that say which of them are a replay.

A save writes the slots that are new since the last one, then a manifest, and last its name (an atomic rename), so what
was saved before stays whole whatever happens. Nothing that is loaded is code: manifests are JSON, files are numbers.

A replay's history has a random name. Steps of one history never change, so a file of it is used again; a replay that
was loaded begins a history of its own and knows up to where those before it are its own too (:class:`History`).

The files of one save take at most twice what its steps take: beyond that, the steps which the emptiest files still
hold are written anew and those files left to older saves. So ``keep`` saves take at most 2 * ``keep`` times the ring,
and where lanes advance alike about one ring and what the kept saves have beyond it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fastrl.engine.files import (
    DamagedFile,
    forget_leftovers,
    make_private_directory,
    open_regular,
    read_json,
    write_json,
    write_private_parts,
)

FORMAT = 1
_MAGIC = b"fastrl-slots-1\n\0"
_FILE_BYTES = 256_000_000  # about the largest file of slots
_CHUNK_BYTES = 4_000_000  # about what is read or written at a time
_MANIFEST = "replay-{:08d}.json"
_MOST_SPREAD = 2  # times the bytes of its steps that a save's files may take


class DamagedReplay(DamagedFile):
    """A saved replay that is not what was saved: which file, and what is wrong with it."""


def manifests(directory: Path) -> list[Path]:
    """The manifests of ``directory``, the newest first."""
    return sorted(directory.glob("replay-" + "[0-9]" * 8 + ".json"), reverse=True)


@dataclass(frozen=True)
class History:
    """What the steps of a replay are: two replays with the same name and number of a step have the same step.

    Attributes:
        name: of the steps that it adds.
        ancestors: histories that it went on from, and up to which step of each lane.
    """

    name: str = field(default_factory=lambda: secrets.token_hex(16))
    ancestors: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def after(cls, manifest: dict[str, Any]) -> History:
        """A new one that goes on from a save."""
        ends = [end for _, end in manifest["windows"]]
        used = {file.get("history") for file in manifest["files"]}
        older = {name: until for name, until in manifest.get("ancestors", {}).items() if name in used}
        return cls(ancestors={**older, _history_of(manifest): ends})

    def has(self, file: dict[str, Any], written_by: str) -> bool:
        """Whether all steps of a file are also this history's."""
        if written_by == self.name:
            return True
        until = self.ancestors.get(written_by)
        return until is not None and all(run["end"] <= until[run["lane"]] for run in file["runs"])

    def is_related(self, manifest: dict[str, Any]) -> bool:
        """Whether the save is of this history, or both go on from the same one."""
        theirs = {_history_of(manifest), *manifest.get("ancestors", {})}
        return not theirs.isdisjoint({self.name, *self.ancestors})


def _history_of(manifest: dict[str, Any]) -> str:
    # Saves once had none; such a one is only itself.
    unnamed = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest
    return str(manifest["history"]) if "history" in manifest else unnamed()


@dataclass(frozen=True)
class Piece:
    """Steps ``first`` to ``end - 1`` of a lane, which are the slots from ``offset`` on of a file."""

    first: int
    end: int
    name: str
    offset: int


class SlotStore:
    """Files of slots of one replay in one directory."""

    def __init__(self, directory: Path, shape: dict[str, int], slot_words: int, history: History) -> None:
        self.directory = directory
        self.shape = shape
        self.slot_words = slot_words
        self.history = history

    @property
    def _slots_at_a_time(self) -> int:
        return max(1, _CHUNK_BYTES // (8 * self.slot_words))

    # ---- saving

    def save(self, ring: Any, ends: list[int], kept_steps: int, state: dict[str, Any], keep: int) -> Path:
        """Write what is new of steps ``end - kept_steps .. end - 1`` of each lane, and a manifest.

        Args:
            ring: the native ring.
            ends: of each lane.
            kept_steps: how many steps of a lane count.
            state: goes into the manifest.
            keep: how many manifests stay; files that none of them names are deleted.
        """
        try:
            return self._save(ring, ends, kept_steps, state, keep)
        except OSError as error:
            with contextlib.suppress(OSError):
                delete_unnamed_slots(self.directory)
            raise OSError(
                error.errno,
                f"save: {self.directory} could not be written ({error.strerror}); earlier saves are whole; make "
                f"room or save elsewhere, then save again",
            ) from error

    def _save(self, ring: Any, ends: list[int], kept_steps: int, state: dict[str, Any], keep: int) -> Path:
        make_private_directory(self.directory)
        forget_leftovers(self.directory)
        known, damaged, number = self._known()
        windows = [(max(0, end - kept_steps), end) for end in ends]
        files, new = self._chosen(known, windows)
        files += self._write_slots(ring, new, number)
        manifest = {
            "format": FORMAT,
            "shape": self.shape,
            "slot_words": self.slot_words,
            "history": self.history.name,
            "ancestors": self.history.ancestors,
            "windows": windows,
            "files": files,
            **state,
        }
        path = self.directory / _MANIFEST.format(number)
        write_json(path, manifest)
        whole = 0
        for old in manifests(self.directory):
            whole += old not in damaged  # one that cannot be read keeps no whole one from its place
            if whole > keep:
                old.unlink(missing_ok=True)
        delete_unnamed_slots(self.directory)
        return path

    def _known(self) -> tuple[list[dict[str, Any]], set[Path], int]:
        """What a save finds there.

        Returns:
            The files that have steps of this history only, the newest save's first; the manifests that cannot be read;
            the number of the next save.

        Raises:
            ValueError: all saves there are another replay's.
        """
        found = manifests(self.directory)
        number = int(found[0].stem.split("-")[1]) + 1 if found else 0
        known: dict[str, dict[str, Any]] = {}
        damaged: set[Path] = set()
        foreign, related = None, False
        for path in found:
            try:
                manifest = read_manifest(path)
            except DamagedReplay:
                damaged.add(path)
                continue
            if manifest["shape"] != self.shape or not self.history.is_related(manifest):
                foreign = foreign or path
                continue
            related = True
            for file in manifest["files"]:
                written_by = file.get("history", _history_of(manifest))
                if self.history.has(file, written_by) and self._is_there(file):
                    known.setdefault(file["name"], {**file, "history": written_by})
        if foreign is not None and not related:
            raise ValueError(
                f"save: {self.directory} holds another replay ({foreign.name} is its newest save), which this one did "
                f"not go on from; use an empty directory, or load that save into a new replay first"
            )
        return list(known.values()), damaged, number

    def _is_there(self, file: dict[str, Any]) -> bool:
        with contextlib.suppress(OSError):
            found = os.stat(self.directory / file["name"], follow_symlinks=False)
            return stat.S_ISREG(found.st_mode) and found.st_size == file["bytes"]
        return False

    def _chosen(
        self, known: list[dict[str, Any]], windows: list[tuple[int, int]]
    ) -> tuple[list[dict[str, Any]], list[tuple[int, int, int]]]:
        """Of the ``known`` files those that a save with these windows names, and what it is to write.

        That is (lane, first, end) each.

        What no file has any more is written again; so is what the emptiest files have, where too little of the files'
        bytes is needed.
        """
        missing = [[window] for window in windows]  # of each lane what is in no chosen file
        chosen: list[tuple[int, dict[str, Any]]] = []  # with how many slots it is needed for
        for file in known:
            needed = 0
            for run in file["runs"]:
                left = _without(missing[run["lane"]], run["first"], run["end"])
                needed += _length(missing[run["lane"]]) - _length(left)
                missing[run["lane"]] = left
            if needed:
                chosen.append((needed, file))
        slot_bytes = 8 * self.slot_words
        most = _MOST_SPREAD * slot_bytes * sum(end - first for first, end in windows)
        taken = sum(file["bytes"] for _, file in chosen) + slot_bytes * sum(_length(parts) for parts in missing)
        chosen.sort(key=lambda one: one[0] * slot_bytes / one[1]["bytes"], reverse=True)
        while chosen and taken > most:
            needed, file = chosen.pop()
            taken -= file["bytes"] - needed * slot_bytes
        missing = [[window] for window in windows]
        for _, file in chosen:
            for run in file["runs"]:
                missing[run["lane"]] = _without(missing[run["lane"]], run["first"], run["end"])
        chosen.sort(key=lambda one: str(one[1]["name"]))
        new = [(lane, first, end) for lane, parts in enumerate(missing) for first, end in parts if first < end]
        return [file for _, file in chosen], new

    def _write_slots(self, ring: Any, new: list[tuple[int, int, int]], number: int) -> list[dict[str, Any]]:
        """Files of at most about _FILE_BYTES with these runs (lane, first, end)."""
        most = max(1, _FILE_BYTES // (8 * self.slot_words))
        files: list[dict[str, Any]] = []
        waiting: list[tuple[int, int, int]] = [
            (lane, at, min(at + most, end)) for lane, first, end in new for at in range(first, end, most)
        ]
        while waiting:
            runs: list[tuple[int, int, int]] = []
            slots = 0
            while waiting and (not runs or slots + waiting[0][2] - waiting[0][1] <= most):
                runs.append(waiting.pop(0))
                slots += runs[-1][2] - runs[-1][1]
            name = f"slots-{number:08d}-{len(files):04d}.bin"
            files.append(
                {
                    "name": name,
                    "bytes": len(_MAGIC) + 8 * self.slot_words * slots,
                    "crc32": _write_runs(self.directory / name, ring, runs, self._slots_at_a_time),
                    "history": self.history.name,
                    "runs": [{"lane": lane, "first": first, "end": end} for lane, first, end in runs],
                }
            )
        return files

    # ---- loading

    def verify(self, manifest: dict[str, Any]) -> list[list[Piece]]:
        """Read every file of a save, in little memory.

        Returns:
            Of each lane where the steps of its window are, in order: for :meth:`restore`.

        Raises:
            DamagedReplay: a file is missing, cut, changed, or does not have what the manifest says.
        """
        windows = manifest["windows"]
        runs: list[list[tuple[int, int, str, int]]] = [[] for _ in windows]
        for file in manifest["files"]:
            self._verify_file(file)
            at = 0
            for run in file["runs"]:
                runs[run["lane"]].append((run["first"], run["end"], file["name"], at))
                at += run["end"] - run["first"]
        found: list[list[Piece]] = []
        for lane, (first, end) in enumerate(windows):
            at, pieces = first, []
            for begin, until, name, offset in sorted(runs[lane]):
                if begin > at:
                    break
                if until > at and at < end:
                    pieces.append(Piece(at, min(until, end), name, offset + at - begin))
                    at = pieces[-1].end
            if at != end:
                raise DamagedReplay(
                    f"{self.directory}: steps from {at} on of lane {lane} are in no file; {end} were saved"
                )
            found.append(pieces)
        return found

    def restore(self, lanes: list[list[Piece]], restorer: Any) -> None:
        """Give what :meth:`verify` found to a native ``RingRestorer``, a few megabytes at a time.

        Raises:
            DamagedReplay: a file was changed meanwhile; the ring has a part of it all.
        """
        for lane, pieces in enumerate(lanes):
            for piece in pieces:
                with self._opened(piece.name) as file:
                    file.seek(len(_MAGIC) + 8 * self.slot_words * piece.offset)
                    for at, slots in self._chunks(file, self.directory / piece.name, piece.first, piece.end):
                        if not restorer.put(lane, at, slots):
                            raise DamagedReplay(f"{self.directory / piece.name}: was changed while it was loaded")

    def _chunks(self, file: BinaryIO, path: Path, first: int, end: int) -> Iterator[tuple[int, npt.NDArray[np.uint64]]]:
        """Slots ``first`` to ``end - 1``, which come next in the file; each array is good until the next one."""
        most = min(end - first, self._slots_at_a_time)
        buffer = np.empty((most, self.slot_words), np.uint64)
        for at in range(first, end, most):
            slots = buffer[: min(most, end - at)]
            try:
                got = file.readinto(slots.view(np.uint8).data)  # type: ignore[attr-defined]
            except OSError as error:
                raise DamagedReplay(f"{path}: cannot be read ({error.strerror})") from None
            if got != slots.nbytes:
                raise DamagedReplay(f"{path}: was cut while it was read")
            yield at, slots

    def _opened(self, name: str) -> BinaryIO:
        if name != os.path.basename(name):
            raise DamagedReplay(f"{self.directory}: the manifest names {name!r}, which is not a plain file name")
        try:
            return open_regular(self.directory / name)
        except DamagedFile as error:
            raise DamagedReplay(str(error)) from None

    def _verify_file(self, file: dict[str, Any]) -> None:
        path = self.directory / file["name"]
        with self._opened(file["name"]) as opened:
            size = os.fstat(opened.fileno()).st_size
            expected = len(_MAGIC) + sum(8 * self.slot_words * (run["end"] - run["first"]) for run in file["runs"])
            if size != expected or size != file["bytes"]:
                raise DamagedReplay(f"{path}: has {size} bytes, {expected} were saved")
            magic = opened.read(len(_MAGIC))
            crc, in_order = zlib.crc32(magic), magic == _MAGIC
            for run in file["runs"]:
                for at, slots in self._chunks(opened, path, run["first"], run["end"]):
                    crc = zlib.crc32(slots.data, crc)
                    # The first word of a slot is the number of its step.
                    in_order &= bool((slots[:, 0] == np.arange(at, at + len(slots), dtype=np.uint64)).all())
        if crc != file["crc32"]:
            raise DamagedReplay(f"{path}: its checksum is not the one that was saved")
        if not in_order:
            raise DamagedReplay(f"{path}: its slots are not those that the manifest says")


def _write_runs(path: Path, ring: Any, runs: list[tuple[int, int, int]], at_a_time: int) -> int:
    """A file of these runs (lane, first, end), copied out of the ring a few megabytes at a time; its checksum."""
    crc = zlib.crc32(_MAGIC)

    def parts() -> Iterator[Any]:
        nonlocal crc
        yield _MAGIC
        for lane, first, end in runs:
            for at in range(first, end, at_a_time):
                slots = np.ascontiguousarray(ring.copy_slots(lane, at, min(at + at_a_time, end)))
                crc = zlib.crc32(slots.data, crc)
                yield slots.data

    write_private_parts(path, parts())
    return crc


def _without(parts: list[tuple[int, int]], first: int, end: int) -> list[tuple[int, int]]:
    """Intervals less one."""
    cut = [(begin, min(until, first)) for begin, until in parts] + [(max(begin, end), until) for begin, until in parts]
    return sorted({part for part in cut if part[0] < part[1]})


def _length(parts: list[tuple[int, int]]) -> int:
    return sum(max(0, end - first) for first, end in parts)


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest, verified.

    Raises:
        DamagedReplay: it is cut, changed, or of a format that this version does not read.
    """
    try:
        manifest = read_json(path)
    except DamagedFile as error:
        raise DamagedReplay(str(error)) from None
    if manifest.get("format") != FORMAT:
        raise DamagedReplay(f"{path}: has format {manifest.get('format')!r}, this version of fastrl reads {FORMAT}")
    return manifest


def delete_unnamed_slots(directory: Path) -> None:
    """Delete the files of slots that no manifest names; none where a manifest cannot be read, for it may name any."""
    named: set[str] = set()
    for path in manifests(directory):
        try:
            named |= {file["name"] for file in read_manifest(path)["files"]}
        except (DamagedReplay, KeyError, TypeError):
            return
    for path in directory.glob("slots-*.bin"):
        if path.name not in named:
            path.unlink(missing_ok=True)
