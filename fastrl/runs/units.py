"""Numbers as people read them."""

from __future__ import annotations

import math

MISSING = "-"


def count(value: float | None) -> str:
    """A number of things in four or five characters: 950, 1.25k, 48.0M."""
    if value is None or not math.isfinite(value):
        return MISSING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scaled = value / (1e3 if unit == "k" else size)
            return f"{scaled:.2f}{unit}" if scaled < 10 else f"{scaled:.1f}{unit}"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.1f}"


def duration(seconds: float | None) -> str:
    """A time in its two largest units: 42s, 3m07s, 5h12m, 2d03h."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def share(value: float | None) -> str:
    """A part of a whole: 7%."""
    return MISSING if value is None or math.isnan(value) else f"{value:.0%}"


def measured(value: float | None) -> str:
    """A measured number with four significant digits."""
    return MISSING if value is None else f"{value:.4g}"


def megabytes(value: float | None) -> str:
    """Megabytes as MB or GB."""
    if value is None or math.isnan(value):
        return MISSING
    return f"{value / 1000:.1f} GB" if value >= 1000 else f"{value:.0f} MB"


def size(count: float) -> str:
    """Bytes with three digits or so.

    >>> size(7.1e9), size(350e6), size(12e3)
    ('7.10 GB', '350 MB', '12 kB')
    """
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
