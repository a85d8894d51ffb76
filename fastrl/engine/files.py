"""Files that are either whole or not there, and that say so themselves: checksummed JSON beside plain numbers."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any


class DamagedFile(ValueError):
    """A file that is not what was written: which one, and what is wrong with it."""


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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` under a line with its length and checksum."""
    body = json.dumps(content, separators=(",", ":")).encode()
    write_private(path, json.dumps({"crc32": zlib.crc32(body), "bytes": len(body)}).encode(), b"\n", body)


def read_json(path: Path) -> dict[str, Any]:
    """What :func:`write_json` wrote, verified.

    Raises:
        DamagedFile: it is missing, cut or changed.
    """
    try:
        head, body = path.read_bytes().split(b"\n", 1)
        said = json.loads(head)
        if len(body) != said["bytes"] or zlib.crc32(body) != said["crc32"]:
            raise DamagedFile(f"{path}: its checksum is not the one that was saved")
        content = json.loads(body)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, DamagedFile):
            raise
        raise DamagedFile(f"{path}: cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise DamagedFile(f"{path}: holds {type(content).__name__}, not an object")
    return content
