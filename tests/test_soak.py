"""A sample of `python tests/soak.py`."""

from __future__ import annotations

from soak import soak


def test_memory_does_not_grow_over_twenty_thousand_steps() -> None:
    readings = [resident for _, resident in soak(20_000, save_every_steps=4_000)]

    assert (readings[-1] - readings[1]) / 1e6 < 4.0
