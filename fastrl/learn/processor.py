"""What the processor multiplies by itself, and who makes use of it: that decides precisions and libraries."""

from __future__ import annotations

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# As Linux names them: on x86-64 (Cooper Lake, Sapphire Rapids, Zen 4 are the first to have them), and on ARM.
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


def multiplies_bf16(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether it has instructions for products of bf16; else they are imitated, and slower than fp32's."""
    return bool(_BF16 & _said(cpuinfo, "flags", "Features"))


def is_slowed_by_mkl(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether it has vectors of 512 bits that MKL does not use, for it is not Intel's."""
    return "AuthenticAMD" in _said(cpuinfo, "vendor_id") and "avx512f" in _said(cpuinfo, "flags")


def _said(cpuinfo: Path, *names: str) -> set[str]:
    """Every word of the lines of these names."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    named = (line.partition(":") for line in lines)
    return {word for name, _, value in named if name.strip() in names for word in value.split()}
