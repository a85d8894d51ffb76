"""A replay on disk: files of slots that are written once, and manifests that say which of them are a replay.

A save writes the slots that are new since the last one, then a manifest, and last its name (an atomic rename), so what
was saved before stays whole whatever happens. Nothing that is loaded is code: manifests are JSON, files are numbers.
The store takes at most what the ring takes, and once more what its kept saves have beyond it.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FORMAT = 1
_MAGIC = b"fastrl-slots-1\n\0"
_FILE_BYTES = 256_000_000  # about the largest file of slots
_MANIFEST = "replay-{:08d}.json"
_PARTS = ".*.part"  # what a save was writing


class DamagedReplay(ValueError):
    """A saved replay that is not what was saved: which file, and what is wrong with it."""


def write_private(path: Path, *parts: Any) -> None:
    """Write a file that only its owner may read, all of it on disk, under its name only when it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make sure that the names in ``directory`` are on disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def manifests(directory: Path) -> list[Path]:
    """The manifests of ``directory``, the newest first."""
    return sorted(directory.glob("replay-" + "[0-9]" * 8 + ".json"), reverse=True)


class SlotStore:
    """Files of slots of one replay in one directory."""

    def __init__(self, directory: Path, shape: dict[str, int], slot_words: int) -> None:
        self.directory = directory
        self.shape = shape
        self.slot_words = slot_words

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
                self._delete_unnamed()
            raise OSError(
                error.errno,
                f"save: {self.directory} could not be written ({error.strerror}); earlier saves are whole; make "
                f"room or save elsewhere, then save again",
            ) from error

    def _save(self, ring: Any, ends: list[int], kept_steps: int, state: dict[str, Any], keep: int) -> Path:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self.directory.glob(_PARTS):  # by a process that was killed
            left.unlink(missing_ok=True)
        known, number = self._newest_known()
        windows = [(max(0, end - kept_steps), end) for end in ends]
        files: list[dict[str, Any]] = []
        saved_until = [first for first, _ in windows]
        for file in known:
            runs = [run for run in file["runs"] if run["end"] > windows[run["lane"]][0]]
            if any(run["end"] > windows[run["lane"]][1] for run in runs):
                runs, files, saved_until = [], [], [first for first, _ in windows]  # of a longer history: not ours
                break
            if runs:
                files.append(file)
            for run in runs:
                saved_until[run["lane"]] = max(saved_until[run["lane"]], run["end"])
        new = [(lane, saved_until[lane], end) for lane, (_, end) in enumerate(windows) if saved_until[lane] < end]
        files += self._write_slots(ring, new, number)
        manifest = {
            "format": FORMAT,
            "shape": self.shape,
            "slot_words": self.slot_words,
            "windows": windows,
            "files": files,
            **state,
        }
        path = self.directory / _MANIFEST.format(number)
        body = json.dumps(manifest, separators=(",", ":")).encode()
        write_private(path, json.dumps({"crc32": zlib.crc32(body), "bytes": len(body)}).encode(), b"\n", body)
        self._forget_old(keep)
        return path

    def _newest_known(self) -> tuple[list[dict[str, Any]], int]:
        """The files of the newest whole manifest of this shape, and the number of the next one."""
        found = manifests(self.directory)
        number = int(found[0].stem.split("-")[1]) + 1 if found else 0
        for path in found:
            try:
                manifest = read_manifest(path)
            except DamagedReplay:
                continue
            if manifest["shape"] != self.shape:
                break
            return [file for file in manifest["files"] if (self.directory / file["name"]).exists()], number
        return [], number

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
            parts = [np.ascontiguousarray(ring.copy_slots(*run)) for run in runs]
            crc = zlib.crc32(_MAGIC)
            for part in parts:
                crc = zlib.crc32(part.data, crc)
            write_private(self.directory / name, _MAGIC, *(part.data for part in parts))
            files.append(
                {
                    "name": name,
                    "bytes": len(_MAGIC) + sum(part.nbytes for part in parts),
                    "crc32": crc,
                    "runs": [{"lane": lane, "first": first, "end": end} for lane, first, end in runs],
                }
            )
        return files

    def _forget_old(self, keep: int) -> None:
        """Delete manifests beyond ``keep``, then files that no manifest names."""
        for path in manifests(self.directory)[keep:]:
            path.unlink(missing_ok=True)
        self._delete_unnamed()

    def _delete_unnamed(self) -> None:
        named: set[str] = set()
        for path in manifests(self.directory):
            try:
                named |= {file["name"] for file in read_manifest(path)["files"]}
            except DamagedReplay:
                return  # or could not be read just now: which files it names is not known
        for path in self.directory.glob("slots-*.bin"):
            if path.name not in named:
                path.unlink(missing_ok=True)

    # ---- loading

    def read(self, manifest: dict[str, Any]) -> list[list[npt.NDArray[np.uint64]]]:
        """The slots of every lane's window, in order, each file verified.

        Raises:
            DamagedReplay: a file is missing, cut, changed, or does not have what the manifest says.
        """
        windows = manifest["windows"]
        parts: list[list[tuple[int, npt.NDArray[np.uint64]]]] = [[] for _ in windows]
        for file in manifest["files"]:
            for run, slots in self._read_file(file):
                first = windows[run["lane"]][0]
                skipped = max(0, first - run["first"])
                if skipped < len(slots):
                    parts[run["lane"]].append((run["first"] + skipped, slots[skipped:]))
        found = []
        for lane, (first, end) in enumerate(windows):
            at, ordered = first, []
            for begin, slots in sorted(parts[lane], key=lambda part: part[0]):
                if begin != at:
                    break
                ordered.append(slots)
                at += len(slots)
            if at != end:
                raise DamagedReplay(
                    f"{self.directory}: steps from {at} on of lane {lane} are in no file; {end} were saved"
                )
            found.append(ordered)
        return found

    def _read_file(self, file: dict[str, Any]) -> list[tuple[dict[str, int], npt.NDArray[np.uint64]]]:
        name = file["name"]
        if name != os.path.basename(name):
            raise DamagedReplay(f"{self.directory}: the manifest names {name!r}, which is not a plain file name")
        path = self.directory / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise DamagedReplay(f"{path}: cannot be opened ({error.strerror})") from None
        with os.fdopen(descriptor, "rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            expected = len(_MAGIC) + sum(8 * self.slot_words * (run["end"] - run["first"]) for run in file["runs"])
            if size != expected or size != file["bytes"]:
                raise DamagedReplay(f"{path}: has {size} bytes, {expected} were saved")
            content = np.fromfile(opened, np.uint8)
        if zlib.crc32(content.data) != file["crc32"] or content[: len(_MAGIC)].tobytes() != _MAGIC:
            raise DamagedReplay(f"{path}: its checksum is not the one that was saved")
        words = content[len(_MAGIC) :].view(np.uint64).reshape(-1, self.slot_words)
        at, found = 0, []
        for run in file["runs"]:
            count = run["end"] - run["first"]
            found.append((run, words[at : at + count]))
            at += count
        return found


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest, verified.

    Raises:
        DamagedReplay: it is cut, changed, or of a format that this version does not read.
    """
    try:
        head, body = path.read_bytes().split(b"\n", 1)
        said = json.loads(head)
        if len(body) != said["bytes"] or zlib.crc32(body) != said["crc32"]:
            raise DamagedReplay(f"{path}: its checksum is not the one that was saved")
        manifest: dict[str, Any] = json.loads(body)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DamagedReplay):
            raise
        raise DamagedReplay(f"{path}: is not a manifest ({error})") from None
    if manifest.get("format") != FORMAT:
        raise DamagedReplay(f"{path}: has format {manifest.get('format')!r}, this version of fastrl reads {FORMAT}")
    return manifest
