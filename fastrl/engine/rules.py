"""What a pool plays by: a protocol, the caller's changes to it, and what the cartridge says, made ready for C++."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any, get_args, get_type_hints

import numpy as np
import numpy.typing as npt

from fastrl.engine import native
from fastrl.engine.games import INEXACT_RESTORES, cacheable_noops, nearest
from fastrl.engine.grey_tables import pixel_tables
from fastrl.engine.protocol import Protocol, protocol

NOOP_LIMIT = 60  # the most no-ops after a reset; the papers draw up to 30

# The native enum (csrc/atari/atari_env.hpp).
_POOLING = {"max_and_skip": 0, "gymnasium": 1, "dopamine": 2, "last_two": 3}


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """``value`` if it is a whole number in [least, most], else an error that says so."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: {value!r} is not a whole number")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name}: {value} is outside [{least}, {'...' if most is None else most}]")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """``value`` if it is True or False, else an error that says so."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: {value!r} is not True or False")
    return bool(value)


def share(name: str, value: Any) -> float:
    """``value`` if it is a number in [0, 1], else an error that says so."""
    known = type(value) is float  # most are, and this is called for every batch
    if not known and (isinstance(value, (bool, np.bool_)) or not isinstance(value, Real)):
        raise TypeError(f"{name} {value!r} is not a number in [0, 1]")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} {value!r} is outside [0, 1]")
    return float(value)


def resolved_protocol(name: str | Protocol, sticky_of_id: float | None, **given: Any) -> Protocol:
    """The named protocol with the pool's own arguments in place of its rules. Arguments win over the env id."""
    named = protocol(name)
    changes = {field: value for field, value in given.items() if value is not None}
    if "sticky" not in changes and sticky_of_id is not None:
        changes["sticky"] = sticky_of_id
    return checked(dataclasses.replace(named, **changes))


def checked(rules: Protocol) -> Protocol:
    """``rules`` if every field has a value that can be played, else an error that names the field."""
    plain: dict[str, Any] = {}
    for field, least, most in (
        ("frame_skip", 1, 1000),
        ("noop_max", 0, NOOP_LIMIT),
        ("max_frames", 0, 2**31 - 1),
        ("evaluation_max_frames", 0, 2**31 - 1),
    ):
        plain[field] = whole_number(field, getattr(rules, field), least, most)
    if isinstance(rules.sticky, bool) or not isinstance(rules.sticky, Real):
        raise TypeError(f"sticky: {rules.sticky!r} is not a number; it is the probability of repeating an action")
    if not 0.0 <= rules.sticky < 1.0:
        raise ValueError(f"sticky: {rules.sticky!r} is outside [0, 1): it is the probability of repeating an action")
    plain["sticky"] = float(rules.sticky)
    for field in ("pooling", "grey", "stack_padding", "life_loss", "reward"):
        value, offered = getattr(rules, field), get_args(get_type_hints(Protocol)[field])
        if value not in offered:
            raise ValueError(
                f"{field}: {value!r} is unknown{nearest(str(value), list(offered))}; known: {', '.join(offered)}"
            )
    for field in ("fire_at_reset", "full_actions"):
        plain[field] = flag(field, getattr(rules, field))
    return dataclasses.replace(rules, **plain)


def action_meanings(codes: list[int]) -> list[str]:
    """The engine's names of its action codes, such as "UPFIRE"."""
    import ale_py

    return [ale_py.Action(code).name for code in codes]


@dataclass(frozen=True)
class _Cartridge:
    """What a cartridge says of itself once it is loaded, which takes the engine 90 ms."""

    rows: int
    minimal_actions: list[int]
    legal_actions: list[int]
    modes: list[int]
    difficulties: list[int]
    palette_rgb: npt.NDArray[np.uint8]
    palette_grey: npt.NDArray[np.uint8]
    starts: Any  # the cached starts, empty where resets must be emulated


@lru_cache(maxsize=16)
def _cartridge(game: str, rom: str, md5: str) -> _Cartridge:
    console = native.core.Emulator(native.engine())
    console.load_rom(rom, 0, 0.0, 0)
    noops = cacheable_noops(game, md5)
    return _Cartridge(
        rows=console.rows,
        minimal_actions=console.minimal_actions(),
        legal_actions=console.legal_actions(),
        modes=console.modes(),
        difficulties=console.difficulties(),
        palette_rgb=console.palette_rgb(),
        palette_grey=console.palette_grey(),
        starts=native.core.CachedStarts(console, noops) if noops else native.core.CachedStarts(),
    )


def native_rules(
    rules: Protocol,
    game: str,
    rom: Any,
    md5: str,
    stack: int,
    mode: int | None,
    difficulty: int | None,
    cpu_path: str | None,
    cached_resets: bool | None,
) -> dict[str, Any]:
    """The protocol as the native part wants it: every rule a value, every name a number."""
    cartridge = _cartridge(game, str(rom), md5)
    for name, value, allowed in (
        ("mode", mode, cartridge.modes),
        ("difficulty", difficulty, cartridge.difficulties),
    ):
        if value is not None and (isinstance(value, (bool, float)) or value not in allowed):
            raise ValueError(f"{name}: {value!r} is not one that {game} has: {allowed}")
    actions = cartridge.legal_actions if rules.full_actions else cartridge.minimal_actions
    if actions[0] != 0 and (rules.noop_max > 0 or rules.life_loss == "ends_episode"):
        raise ValueError(
            f"protocol: '{rules.name}' begins games with no-ops, but the actions that {game} uses have none "
            f"({', '.join(action_meanings(actions))}); give full_actions=True, or noop_max=0 and life_loss='ignored'"
        )
    planes, grey_weights = pixel_tables(rules.grey, cartridge.palette_rgb, cartridge.palette_grey)
    if any(single[0] != 0 for single, _ in planes):
        raise RuntimeError(f"{game}: colour 0 is not black; a pool cannot tell an empty buffer from a screen")
    fire = "FIRE" in action_meanings(actions)
    if cached_resets is not None and not isinstance(cached_resets, bool):
        raise TypeError(f"cached_resets: {cached_resets!r} is not None, True or False")
    if cpu_path is not None and cpu_path not in native.core.available_cpu_paths():
        raise ValueError(
            f"cpu_path: {cpu_path!r} is not among what this processor can run: "
            f"{', '.join(native.core.available_cpu_paths())}"
        )
    proved = cacheable_noops(game, md5) > 0 and rules.sticky == 0.0 and mode is None and difficulty is None
    if cached_resets and not proved:
        raise ValueError(
            f"cached_resets: True, but for {game} with sticky {rules.sticky}, mode {mode}, difficulty {difficulty} it "
            f"is not proved that a reset does not depend on what was played; leave it None"
        )
    identity = {
        "rules": rules.fingerprint(),
        "game": game,
        "rom": md5,
        "ale_py": importlib.metadata.version("ale-py"),
        "stack": stack,
        "mode": mode,
        "difficulty": difficulty,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return {
        "game": game,
        "rom": str(rom),
        "sticky": rules.sticky,
        "max_frames": rules.max_frames,
        "mode": -1 if mode is None else mode,
        "difficulty": -1 if difficulty is None else difficulty,
        "actions": actions,
        "frame_skip": rules.frame_skip,
        "stack": stack,
        "pooling": _POOLING[rules.pooling],
        "noop_min": 1,
        "noop_max": rules.noop_max,
        "fire_at_reset": rules.fire_at_reset and fire,
        "life_loss_ends_episode": rules.life_loss != "ignored",
        "life_loss_seen_every_frame": rules.life_loss == "restarts",
        "clip_reward": rules.reward != "raw",
        "pad_with_first_frame": rules.stack_padding == "first_frame",
        "starts": cartridge.starts if proved and cached_resets is not False else native.core.CachedStarts(),
        "fingerprint": f"{game}/{rules.name}/{digest}",
        "planes": planes,
        "grey_weights": grey_weights,
        "cpu_path": native.core.best_cpu_path() if cpu_path is None else cpu_path,
        "trust_states": game not in INEXACT_RESTORES,
        "screen_rows": cartridge.rows,
        "palette_rgb": cartridge.palette_rgb,
    }
