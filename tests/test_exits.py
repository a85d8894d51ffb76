"""However Python ends, a pool lets it end. The long version is `python tests/exits.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from early import early
from exits import WAYS, leave


@early
def problems(folder: Path, seed: int) -> dict[str, str | None]:
    return {way: leave(way) for way in WAYS}


@pytest.mark.parametrize("way", list(WAYS))
def test_python_ends_by_itself(way: str, problems: dict[str, str | None]) -> None:
    assert problems[way] is None
