"""However Python ends, a pool lets it end. `python tests/exits.py` takes every way; here are some, others each time."""

from __future__ import annotations

import random

from exits import WAYS, leave

SAMPLE = 4


def test_python_ends_by_itself(session_seed: int) -> None:
    chosen = random.Random(session_seed).sample(sorted(WAYS), SAMPLE)
    problems = {way: problem for way in chosen if (problem := leave(way)) is not None}
    print(f"{SAMPLE} of {len(WAYS)} ways: {', '.join(chosen)}")
    assert not problems
