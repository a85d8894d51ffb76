"""Published scores of chance, of people and of DQN in Atari games, and scores measured against them.

There are two conventions, and they differ by more than a factor of two in some games, so a human-normalised score is
only comparable with one of the same convention:

- ``"57"``: games of up to 30 minutes; what papers on all 57 games divide by.
- ``"nature"``: games of up to 5 minutes, as the paper that introduced DQN measured its 49 games;
  it has the scores of DQN too.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONVENTIONS = ("57", "nature")


@dataclass(frozen=True)
class Reference:
    """Published mean returns of one game."""

    random: float  # uniformly random actions
    human: float  # a professional tester
    dqn: float | None = None  # DQN after 200M frames; only in the convention "nature"
    dqn_std: float | None = None  # over its evaluation games, as printed


@functools.cache
def _tables() -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "atari_scores.json").read_text())
    return tables


def _table(convention: str) -> dict[str, Any]:
    if convention not in CONVENTIONS:
        raise ValueError(f"convention: '{convention}' is not known; take one of {', '.join(CONVENTIONS)}")
    return _tables()[convention]


def source(convention: str = "57") -> str:
    """Where the numbers of a convention were published."""
    return str(_table(convention)["source"])


def games(convention: str = "57") -> tuple[str, ...]:
    """The games that a convention has scores of, as ale-py names them."""
    return tuple(_table(convention)["games"])


def reference(game: str, convention: str = "57") -> Reference | None:
    """The published scores of a game, named as ale-py does; None where there are none.

    >>> reference("pong", "nature")
    Reference(random=-20.7, human=9.3, dqn=18.9, dqn_std=1.3)
    """
    table = _table(convention)
    row = table["games"].get(game)
    if row is None:
        return None
    named = dict(zip(table["columns"], row, strict=True))
    return Reference(named["random"], named["human"], named.get("dqn"), named.get("dqn_std"))


def human_normalised(game: str, score: float, convention: str = "57") -> float | None:
    """A score on the scale where random play is 0 and a human is 1; None where no reference is known.

    >>> human_normalised("pong", 14.6)
    1.0
    >>> human_normalised("cart_pole", 500.0) is None
    True
    """
    known = reference(game, convention)
    return None if known is None else (score - known.random) / (known.human - known.random)
