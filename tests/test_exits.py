"""However Python ends, a pool lets it end. The long version is `python tests/exits.py`."""

from __future__ import annotations

from early import early
from exits import WAYS, leave

problem = early("problem", lambda way, folder, seed: leave(way), WAYS)


def test_python_ends_by_itself(problem: str | None) -> None:
    assert problem is None
