"""How far numbers in fp32 or bf16 may be from the same in plain fp32."""

from __future__ import annotations

from collections.abc import Iterable

import torch

# Of a whole vector, to its length. bf16 has three digits, in every layer there and back: rounding alone was 0.04 to
# 0.07. Whether the formula is the right one, fp32 tells more sharply.
_FAR = {"fp32": 1e-4, "bf16": 0.15}


def check_near(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor], precision: str) -> None:
    """Raise AssertionError if they are further apart than rounding explains."""
    ours, plain = (torch.cat([part.detach().reshape(-1) for part in parts]) for parts in (found, expected))
    far = float((ours - plain).norm() / plain.norm())
    assert far < _FAR[precision], f"{far:.2g} of the length away from plain fp32, {_FAR[precision]} is rounding"
