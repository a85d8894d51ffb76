"""Files that are either whole or not there, and that say so themselves: checksummed JSON beside plain numbers."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

# No JSON of a run is larger; reading a larger one would only fill the memory.
MOST_JSON_BYTES = 256_000_000


class DamagedFile(ValueError):
    """A file that is not what was written: which one, and what is wrong with it."""


def make_private_directory(path: Path) -> None:
    """Make a directory that only its owner may enter, and what is missing above it, their names on disk."""
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):  # somebody else was first
            os.mkdir(directory, 0o700)
        sync_directory(directory.parent)


def write_private(path: Path, *parts: Any) -> None:
    """Write a file that only its owner may read, all of it on disk, under its name only when it is whole."""
    write_private_parts(path, parts)


def write_private_parts(path: Path, parts: Iterable[Any]) -> None:
    """The same of parts that are made while they are written."""
    # The name is a new one each time: what a process that was killed has left belongs to nobody, and in a container the
    # next process has the same number.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            for part in parts:
                rest = memoryview(part).cast("B")
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def free_bytes(directory: Path) -> int:
    """That a user may still write where ``directory`` is, or is to be."""
    there = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def sync_directory(directory: Path) -> None:
    """Make sure that the names in ``directory`` are on disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget_leftovers(directory: Path, endings: Iterable[str] = ("",)) -> None:
    """Delete what :func:`write_private` left here when its process was killed.

    Args:
        directory: nobody is to write such a file there meanwhile.
        endings: only of files whose names end so.
    """
    for ending in endings:
        for path in directory.glob(f".*{ending}.*.part"):
            path.unlink(missing_ok=True)


def open_regular(path: Path) -> BinaryIO:
    """Open a plain file to read: no link, no pipe, no device.

    Raises:
        DamagedFile: it is something else, or cannot be opened.
    """
    try:  # a pipe of that name does not block
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise DamagedFile(f"{path}: cannot be opened ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedFile(f"{path}: is no plain file")
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The content of a plain file of no more than ``most_bytes``.

    Raises:
        DamagedFile: it is something else, or cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise DamagedFile(f"{path}: has {size:,} bytes, at most {most_bytes:,} are allowed")
        try:
            return file.read(size)
        except OSError as error:
            raise DamagedFile(f"{path}: cannot be read ({error.strerror})") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` under a line with its length and checksum."""
    body = json.dumps(content, separators=(",", ":")).encode()
    head = json.dumps({"crc32": zlib.crc32(body), "bytes": len(body)}).encode()
    if len(head) + 1 + len(body) > MOST_JSON_BYTES:
        raise ValueError(f"write_json: {path} would have {len(body):,} bytes, at most {MOST_JSON_BYTES:,} are allowed")
    write_private(path, head, b"\n", body)


def read_json(path: Path) -> dict[str, Any]:
    """What :func:`write_json` wrote, verified.

    Raises:
        DamagedFile: it is missing, cut or changed.
    """
    written = read_regular(path, MOST_JSON_BYTES)
    try:
        head, _, body = written.partition(b"\n")
        said = json.loads(head)
        if len(body) != said["bytes"] or zlib.crc32(body) != said["crc32"]:
            raise DamagedFile(f"{path}: its checksum is not the one that was saved")
        content = json.loads(body)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, DamagedFile):
            raise
        why = type(error).__name__
        raise DamagedFile(f"{path}: is damaged, or was not written by fastrl ({why})") from None
    if not isinstance(content, dict):
        raise DamagedFile(f"{path}: holds {type(content).__name__}, not an object")
    return content
