"""A file that grows by whole records."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class AppendedFile:
    """Appends records whole: what does not fit is taken back, so that the next one does not follow half a record.

    A process that is killed leaves whole records: each is one write, and the kernel keeps it. Only a machine that loses
    power can lose some, back to the last ``sync``.

    Args:
        path: opened anew for each record; a record is rare beside the work that it reports.
        size: bytes that are in it; with 0 the file is made by the first record, for its owner only.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        self._size = size

    def append(self, record: bytes) -> None:
        """Add ``record``, or raise ``OSError`` and leave the file as it was."""
        made = os.O_CREAT if self._size == 0 else 0
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | made, 0o600)
        try:
            if os.fstat(descriptor).st_size > self._size:  # a record could not be taken back when it did not fit
                os.ftruncate(descriptor, self._size)
            rest = memoryview(record)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, self._size)
            raise
        finally:
            os.close(descriptor)
        self._size += len(record)

    def read(self) -> bytes:
        """The whole records."""
        return self.path.read_bytes()[: self._size]

    def sync(self) -> None:
        """Put what was appended on disk."""
        if self._size:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
