"""However Python ends, a pool lets it end. The long version is `python tests/exits.py`."""

from __future__ import annotations

import pytest
from exits import WAYS, leave


@pytest.mark.parametrize("way", WAYS)
def test_python_ends_by_itself(way: str) -> None:
    assert leave(way) is None
