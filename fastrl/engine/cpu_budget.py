"""How many cores this process may really use: its affinity and the quotas of its control groups."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def _quota_of(directory: Path) -> float:
    """Cores that one control group allows; infinite where it says nothing."""
    try:
        quota, period = (directory / "cpu.max").read_text().split()  # version 2
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((directory / "cpu.cfs_quota_us").read_text())  # version 1
        period_us = int((directory / "cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else math.inf
    except (OSError, ValueError):
        return math.inf


def cgroup_quota_cores(root: Path = CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")) -> float:
    """The tightest quota of this process's control groups, from its own up to the root."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return math.inf
    tightest = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        group = base / path.lstrip("/")
        for directory in (group, *group.parents):
            if not directory.is_relative_to(base):
                break
            tightest = min(tightest, _quota_of(directory))
    return tightest


def usable_cores() -> int:
    """Cores that this process can keep busy, at least 1."""
    cores = float(len(os.sched_getaffinity(0)))
    return max(1, math.ceil(min(cores, cgroup_quota_cores())))
