"""What this process may really use of the machine: cores and memory, the limits of its control groups counted."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")


def _control_groups(controller: str, root: Path, membership: Path) -> Iterator[Path]:
    """The directories of this process's control groups for ``controller``, from its own up to the root."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root  # version 1 has a tree for each controller, version 2 one
        group = base / path.lstrip("/")
        for directory in (group, *group.parents):
            if not directory.is_relative_to(base):
                break
            yield directory


def _quota_cores(directory: Path) -> float:
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


def cgroup_quota_cores(root: Path = CGROUP_ROOT, membership: Path = MEMBERSHIP) -> float:
    """The tightest quota of this process's control groups."""
    return min((_quota_cores(group) for group in _control_groups("cpu", root, membership)), default=math.inf)


def usable_cores() -> int:
    """Cores that this process can keep busy, at least 1."""
    cores = float(len(os.sched_getaffinity(0)))
    return max(1, math.ceil(min(cores, cgroup_quota_cores())))


def _room_bytes(directory: Path) -> float:
    """What may still be allocated in one control group: its limit less what is used and cannot be dropped."""
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            allowed = int((directory / limit).read_text())  # "max" is no number: no limit
            room = allowed - int((directory / used).read_text())
            statistics = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        # Cached files count as used but make way.
        names = (
            ("total_inactive_file", "total_active_file") if limit != "memory.max" else ("inactive_file", "active_file")
        )
        return room + sum(int(statistics.get(name, 0)) for name in names)
    return math.inf


def available_memory_bytes(root: Path = CGROUP_ROOT, membership: Path = MEMBERSHIP, meminfo: Path = MEMINFO) -> int:
    """Memory that can be had without swapping: the system's estimate, or what the control groups leave of it."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        system = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):  # no such file, or of an old kernel
        system = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, int(min([system, *(_room_bytes(group) for group in _control_groups("memory", root, membership))])))
