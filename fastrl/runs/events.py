"""TensorBoard's event files, written through tensorboard's own records: no torch, no thread, no queue.

``torch.utils.tensorboard`` would do, but takes torch and ten times as long to import, and writes in a thread, where a
full disk is seen late and only once.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastrl.runs.appended_file import AppendedFile

_MOST_WAITING = 1000  # records that are kept while the disk is full
_BINS = 64


class EventFile:
    """One file of events in ``directory``; a resumed run starts another.

    Args:
        directory: made if it is missing.
        resume_at_steps: TensorBoard is told to forget what earlier files have after this step.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, directory: Path, resume_at_steps: int | None = None) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event: Any = event_pb2
        self._summary: Any = summary_pb2
        self._record_writer = RecordWriter
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = AppendedFile(directory / _next_name(directory))
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._waiting.append(self._record(file_version="brain.Event:2"))
        if resume_at_steps is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._waiting.append(self._record(step=resume_at_steps + 1, session_log=start))

    def scalars(self, steps: int, values: Mapping[str, float]) -> None:
        """Add numbers of one moment; raises ``OSError`` where that is impossible now, and tries again with the next."""
        summary = self._summary.Summary(
            value=[self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        )
        self._waiting.append(self._record(step=steps, summary=summary))
        self.flush()

    def histograms(self, steps: int, arrays: Mapping[str, Any]) -> None:
        """Add how the numbers of each array are distributed; numbers that are not finite are left out."""
        values = []
        for tag, array in arrays.items():
            numbers = np.asarray(array, np.float64).ravel()
            numbers = numbers[np.isfinite(numbers)]
            if numbers.size:
                values.append(self._summary.Summary.Value(tag=tag, histo=self._histogram(numbers)))
        self._waiting.append(self._record(step=steps, summary=self._summary.Summary(value=values)))
        self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            self._file.append(b"".join(self._waiting))
            self._waiting.clear()

    def sync(self) -> None:
        """Put what was written on disk."""
        self.flush()
        self._file.sync()

    def _histogram(self, numbers: Any) -> Any:
        counts, edges = np.histogram(numbers, _BINS)
        return self._summary.HistogramProto(
            min=numbers.min(),
            max=numbers.max(),
            num=numbers.size,
            sum=numbers.sum(),
            sum_squares=float(numbers @ numbers),
            bucket_limit=edges,  # of n + 1 buckets: the first, empty one says where the second begins
            bucket=[0, *counts],
        )

    def _record(self, **content: Any) -> bytes:
        record = io.BytesIO()
        self._record_writer(record).write(self._event.Event(wall_time=time.time(), **content).SerializeToString())
        return record.getvalue()


def _next_name(directory: Path) -> str:
    """A name that sorts after all others: TensorBoard reads in that order, and a clock can stand still or go back."""
    taken = [int(text) for path in directory.glob("*.tfevents.*") if (text := path.name.split(".")[3]).isdigit()]
    number = max([int(time.time()), *(other + 1 for other in taken)])
    return f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{os.getpid()}.fastrl"
