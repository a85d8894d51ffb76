"""Which game an env id means, where its cartridge is, and what is known about it."""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import json
import re
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

# In ale-py's list, but without a single-player mode; its engine ends the process when one of them is loaded.
NOT_PLAYABLE = frozenset({"combat", "joust", "maze_craze", "warlords"})

# Where the engine's restoreState is not always exact in the middle of a game (tried in all games: states saved at 18
# moments, restored, and 200 frames compared): settings that are not saved, a byte of the cartridge, frames that the
# engine cuts. Saved states of these games replay everything since the cartridge was loaded instead.
INEXACT_RESTORES = frozenset({"miniature_golf", "pitfall2", "tic_tac_toe_3d", "video_checkers", "yars_revenge"})

_ID_FORMS = (
    (re.compile(r"ALE/(?P<game>\w+)-v5"), 0.25),
    (re.compile(r"(?P<game>\w+)NoFrameskip-v4"), 0.0),
    (re.compile(r"(?P<game>\w+)NoFrameskip-v0"), 0.25),
    (re.compile(r"fastrl/(?P<game>\w+)-v0"), None),
    (re.compile(r"(?P<game>\w+)"), None),
)


@dataclass(frozen=True)
class Game:
    """A game and what its env id says about it."""

    name: str  # as ale-py writes it: "ms_pacman"
    sticky: float | None  # the sticky-action probability that the id stands for; None: the protocol's


@lru_cache(maxsize=1)
def playable_games() -> tuple[str, ...]:
    """Names of all games that a pool can play, as ale-py writes them; ``fastrl.games()``."""
    from ale_py import roms

    return tuple(sorted(set(roms.get_all_rom_ids()) - NOT_PLAYABLE))


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def nearest(given: str, offered: list[str]) -> str:
    """The end of an error message: the offered names that are most like ``given``."""
    close = difflib.get_close_matches(given, offered, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def nearest_games(env_id: str) -> str:
    """The end of an error message: the games whose names are most like ``env_id``."""
    by_plain_name = {_plain(game): game for game in playable_games()}
    hint = nearest(_plain(_bare(env_id)), list(by_plain_name))
    return re.sub(r"'(\w+)'", lambda m: repr(by_plain_name.get(m[1], m[1])), hint)


def _bare(env_id: str) -> str:
    return re.sub(r"^(ALE|fastrl)/|(NoFrameskip|Deterministic)?-v\d+$", "", env_id)


def find_game(env_id: str) -> Game:
    """What ``env_id`` means.

    >>> find_game("BreakoutNoFrameskip-v4")
    Game(name='breakout', sticky=0.0)
    >>> find_game("ALE/MsPacman-v5").name, find_game("ms_pacman").name
    ('ms_pacman', 'ms_pacman')
    """
    if not isinstance(env_id, str):
        raise TypeError(f"env_id: expected a name such as 'BreakoutNoFrameskip-v4', got {env_id!r}")
    by_plain_name = {_plain(game): game for game in playable_games()}
    for form, sticky in _ID_FORMS:
        match = form.fullmatch(env_id)
        if match and _plain(match["game"]) in by_plain_name:
            return Game(by_plain_name[_plain(match["game"])], sticky)
    bare = _bare(env_id)
    if _plain(bare) in by_plain_name:
        camel = "".join(part.title() for part in by_plain_name[_plain(bare)].split("_"))
        raise ValueError(
            f"env_id: '{env_id}' names a known game in a form that a protocol cannot replace (its frame skip is part "
            f"of it); use '{camel}NoFrameskip-v4' (no sticky actions), 'ALE/{camel}-v5' (sticky 0.25) or "
            f"'{by_plain_name[_plain(bare)]}' (as the protocol says)"
        )
    if _plain(bare) in {_plain(game) for game in NOT_PLAYABLE}:
        raise ValueError(f"env_id: '{env_id}' has no single-player mode and cannot be played by a pool")
    raise ValueError(
        f"env_id: '{env_id}' is not an Atari game that ale-py brings"
        f"{nearest_games(env_id) or '; some are breakout, ms_pacman and pong'} (all {len(playable_games())}: "
        f"python -c 'import fastrl; print(*fastrl.games())')"
    )


def rom_path(game: str) -> Path:
    """The cartridge of ``game``. The engine would end the process over a bad one, so it is checked here."""
    from ale_py import roms

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            path = roms.get_rom_path(game)
        except OSError as error:
            raise FileNotFoundError(
                f"env_id: the cartridge of {game} is missing or damaged ({error}); reinstall ale-py "
                f"(`pip install --force-reinstall ale-py`), or unset ALE_ROMS_DIR if it is set"
            ) from error
    if path is None:
        raise FileNotFoundError(f"env_id: ale-py {importlib.metadata.version('ale-py')} has no cartridge of {game}")
    return path


def rom_md5(path: Path) -> str:
    """The checksum by which a cartridge is known."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@lru_cache(maxsize=1)
def _cached_resets() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((Path(__file__).parent / "cached_resets.json").read_text())
    return table


def cacheable_noops(game: str, md5: str) -> int:
    """Up to how many no-ops after a reset tests/prove_cached_resets.py found the state independent of what was played.

    0: resets of this game must be emulated. Only the very cartridge and ale-py version that were tried count.
    """
    table = _cached_resets()
    entry = table["games"].get(game, {})
    same_engine = table["ale_py"] == importlib.metadata.version("ale-py")
    proved = same_engine and entry.get("cached", False) and entry.get("rom_md5") == md5
    return int(table["max_noops"]) if proved else 0
