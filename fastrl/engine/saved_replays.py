"""Saved replays as files: whether one is whole, without loading it, and which files nobody needs any more."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import stat
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fastrl.engine.files import MOST_JSON_BYTES, DamagedFile, forget_leftovers
from fastrl.engine.replay_store import DamagedReplay, delete_unnamed_slots, manifests, read_manifest

_SLOT_FILE = re.compile(r"slots-\d{8}-\d{4,}\.bin")
_PRIORITIES = {"n_step", "largest", "first", "entered", "ends", "weights"}
_BLOCK_BYTES = 1 << 20


def check_saved_replay(manifest_path: Path) -> None:
    """Read all of a saved replay and verify it, in constant memory.

    Raises:
        DamagedFile: a part of it is missing, cut, changed, or not what a manifest may say.
    """
    try:
        found = os.stat(manifest_path, follow_symlinks=False)
    except OSError as error:
        raise DamagedFile(f"{manifest_path}: cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_JSON_BYTES:
        raise DamagedFile(f"{manifest_path}: is no plain file of at most {MOST_JSON_BYTES:,} bytes")
    try:
        manifest = read_manifest(manifest_path)
        require_manifest(manifest, manifest_path)
    except DamagedReplay as error:
        raise DamagedFile(str(error)) from None
    for file in manifest["files"]:
        slots = sum(run["end"] - run["first"] for run in file["runs"])
        slot_bytes = 8 * manifest["slot_words"]
        _check_file(manifest_path.parent / file["name"], file["bytes"], file["crc32"], slots * slot_bytes)


def require_manifest(manifest: dict[str, Any], path: Path) -> bytes | None:
    """Everything in it is what a manifest may say. Returns its priorities, unpacked; None if it has none.

    Raises:
        DamagedReplay: something is not.
    """
    try:
        windows = [_whole_numbers(window, 2) for window in manifest["windows"]]
        lanes, _ = _whole_numbers([manifest["shape"]["lanes"], manifest["shape"]["slots"]], 2)
        if len(windows) != lanes or any(first > end for first, end in windows):
            raise ValueError(f"its windows are not those of {lanes} lanes")
        _whole_numbers([manifest["slot_words"], manifest["batches"]], 2)
        for file in manifest["files"]:
            _check_described(file, lanes)
        _check_history(manifest, lanes)
        return _unpacked_priorities(manifest["priorities"], manifest["shape"], [end for _, end in windows])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise DamagedReplay(f"{path}: is not a manifest ({type(error).__name__}: {error})") from None


def _whole_numbers(values: Any, count: int) -> list[int]:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{count} numbers are expected")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
            raise ValueError(f"{str(value)[:40]!r} is no number of steps or bytes")
    return values


def _check_described(file: dict[str, Any], lanes: int) -> None:
    if not _SLOT_FILE.fullmatch(file["name"]):
        raise ValueError(f"{file['name'][:80]!r} is no name of a file of slots")
    _whole_numbers([file["bytes"], file["crc32"]], 2)
    for run in file["runs"]:
        lane, first, end = _whole_numbers([run["lane"], run["first"], run["end"]], 3)
        if lane >= lanes or first >= end:
            raise ValueError(f"steps {first} to {end} of lane {lane} are none")


def _check_history(manifest: dict[str, Any], lanes: int) -> None:
    ancestors = manifest.get("ancestors", {})
    names = [described["history"] for described in (manifest, *manifest["files"]) if "history" in described]
    if not isinstance(ancestors, dict) or not all(isinstance(name, str) for name in names):
        raise ValueError("its history is none")
    for until in ancestors.values():
        _whole_numbers(until, lanes)


def _unpacked_priorities(
    priorities: dict[str, Any] | None, shape: dict[str, int], published: list[int]
) -> bytes | None:
    """Never more than the replay may have: a few bytes can unpack to any number."""
    if priorities is None:
        return None
    lanes, slots = shape["lanes"], shape["slots"]
    if set(priorities) != _PRIORITIES:
        raise ValueError(f"its priorities are not {', '.join(sorted(_PRIORITIES))}")
    _whole_numbers([priorities["n_step"], priorities["largest"]], 2)
    if priorities["n_step"] < 1:
        raise ValueError("its priorities are of transitions of no step")
    steps = 0
    bounds = (_whole_numbers(priorities[name], lanes) for name in ("first", "entered", "ends"))
    for first, entered, end, most_end in zip(*bounds, published, strict=True):
        if not first <= entered <= end <= most_end or entered - first > slots:
            raise ValueError(f"its priorities are of steps {first} to {end} of a lane that ends at {most_end}")
        steps += entered - first
    unpacked, found = zlib.decompressobj(), bytearray()
    rest = base64.b64decode(priorities["weights"])
    try:
        while rest and not unpacked.eof:
            found += unpacked.decompress(rest, _BLOCK_BYTES)
            rest = unpacked.unconsumed_tail
            if len(found) > 8 * steps:
                raise ValueError(f"its priorities are more than the {steps:,} steps that they are of")
        if not unpacked.eof or len(found) < 8 * steps:
            raise ValueError(f"its priorities are cut: fewer than the {steps:,} steps that they are of")
    except zlib.error as error:
        raise ValueError(f"its priorities cannot be unpacked ({error})") from None
    return bytes(found)


def _check_file(path: Path, size: int, crc32: int, slot_bytes: int) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size != size or size < slot_bytes:
                raise DamagedFile(f"{path}: has {found.st_size:,} bytes, {size:,} were saved")
            crc, block = 0, bytearray(_BLOCK_BYTES)
            while got := file.readinto(block):
                crc = zlib.crc32(memoryview(block)[:got], crc)
    except OSError as error:
        raise DamagedFile(f"{path}: cannot be read ({error.strerror})") from None
    if crc != crc32:
        raise DamagedFile(f"{path}: its checksum is not the one that was saved")


def forget_replays(directory: Path, kept: Collection[str]) -> None:
    """Delete the saves in ``directory`` whose manifests are not in ``kept``, then what no manifest names.

    Nothing is deleted that a save in ``kept`` needs, or may need: where a manifest cannot be read, all slots stay.
    """
    for path in manifests(directory):
        if path.name not in kept:
            path.unlink(missing_ok=True)
    forget_leftovers(directory)
    delete_unnamed_slots(directory)
    with contextlib.suppress(OSError):
        directory.rmdir()  # if nothing is left in it
