"""What the processor multiplies by itself, which decides the precision that is fastest."""

from __future__ import annotations

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# As Linux names them: on x86-64 (Cooper Lake, Sapphire Rapids, Zen 4 are the first to have them), and on ARM.
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


def multiplies_bf16(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether it has instructions for products of bf16; else they are imitated, and slower than fp32's."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    named = (line.partition(":") for line in lines)
    return any(_BF16 & set(value.split()) for name, _, value in named if name.strip() in ("flags", "Features"))
