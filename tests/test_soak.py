"""A sample of `python tests/soak.py`, and what `python tests/soak_ring.py` makes of its rows."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from soak import soak
from soak_ring import QUICK, ROOT, Failed, Soak, report


def test_memory_does_not_grow_over_twenty_thousand_steps() -> None:
    readings = [resident for _, resident in soak(20_000, save_every_steps=4_000)]

    assert (readings[-1] - readings[1]) / 1e6 < 4.0


def test_every_promise_of_the_replay_has_a_part_in_its_soak() -> None:
    promised = re.findall(r"^\| (R\d+) \|", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)
    soaked = [row for row, _, _ in Soak(QUICK, 1, Path()).parts()]
    assert list(dict.fromkeys(soaked)) == [row for row in promised if row != "R11"]  # the presets tsan and asan


def test_a_promise_that_is_broken_is_told() -> None:
    made = Soak(QUICK, 1, Path())
    assert made.said(sys.executable, "-c", "print('0 torn')") == "0 torn"
    with pytest.raises(Failed, match="FAILED: torn"):
        made.said(sys.executable, "-c", "print('FAILED: torn', 'more', sep='\\n'); exit(1)")
    with pytest.raises(Failed, match="ended with -11"):
        made.said(sys.executable, "-c", "import os; os.kill(os.getpid(), 11)")
    with pytest.raises(Failed, match="not done after 0 s"):
        made.said(sys.executable, "-c", "import time; time.sleep(60)", longest_s=0.2)
    text = report(made, [("R1", "`torture`", "FAILED: torn", 60.0)], broken=1)
    assert "**1 DO NOT HOLD**" in text
    assert "| R1 | `torture` | FAILED: torn | 1.0 |" in text
