"""A fixed piece of work: speeds told in it travel between machines, and between hours of a machine that others use."""

from __future__ import annotations

import time
import zlib

import numpy as np

_BYTES = np.random.default_rng(0).integers(0, 256, 2_000_000, np.uint8)
_NUMBERS = np.random.default_rng(1).standard_normal(50_000).astype(np.float32)


def calibration_s() -> float:
    """Seconds that it takes now: some milliseconds of whole numbers, copies and products, of one thread.

    Products of matrices are left to those who are measured: libraries share them among threads, which wait for each
    other where others are busy.
    """
    began = time.perf_counter()
    zlib.adler32(_BYTES)
    zlib.crc32(_BYTES)
    for _ in range(4):
        _BYTES.copy()
    numbers = _NUMBERS
    for _ in range(40):
        numbers = numbers * np.float32(1.0001) + np.float32(0.5)
    return time.perf_counter() - began
