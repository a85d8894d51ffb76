"""What the processor multiplies by itself, which decides the precision that is fastest."""

from __future__ import annotations

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# As Linux names them: on x86-64, of Zen 4, Cooper Lake, and all later server processors; on ARM.
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


def multiplies_bf16(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether it has instructions for products of bf16, which take half the time of fp32's; else they are imitated."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    named = (line.partition(":") for line in lines)
    return any(_BF16 & set(value.split()) for name, _, value in named if name.strip() in ("flags", "Features"))
