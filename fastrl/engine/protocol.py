"""Atari protocols: the named sets of rules that a result depends on, written out so that they can be compared.

``PROTOCOLS`` states every default of the Atari rules, once. A pool's own arguments (``frame_skip=...``) replace single
fields; :func:`differences` says what two protocols disagree on, and ``fastrl protocols a b`` prints it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from fastrl.engine.games import nearest


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One set of Atari rules. Frames are emulator frames; a step is ``frame_skip`` of them."""

    name: str
    reference: str  # what it equals, byte for byte
    frame_skip: int  # frames an action is repeated for
    pooling: Literal["max_and_skip", "gymnasium", "dopamine", "last_two"]  # which frames a step shows
    grey: Literal["cv2", "luminance", "ale", "gymnasium_after_resize", "cv2_after_resize"]
    stack_padding: Literal["zeros", "first_frame"]  # of the stack at the start of an episode
    noop_max: int  # no-op frames after a reset are drawn from 1..noop_max; 0: none
    fire_at_reset: bool  # press FIRE, then the next action, where the game has FIRE
    # "ends_episode": for learning, while the game goes on; "restarts": ends it and the game; seen every frame
    life_loss: Literal["ignored", "ends_episode", "restarts"]
    reward: Literal["raw", "sign", "clipped"]  # sign and clipped agree, as games score in whole numbers
    sticky: float  # probability that a frame repeats the previous frame's action instead
    full_actions: bool  # all 18 actions instead of those the game uses
    max_frames: int  # a game is cut here (truncated)
    evaluation_max_frames: int  # the same when a policy is measured

    def fingerprint(self) -> str:
        """A short hash of every rule. Runs and states of different rules have different ones."""
        rules = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("name", "reference")}
        return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:12]


_SB3 = Protocol(
    name="sb3",
    reference="Stable-Baselines3: AtariWrapper + VecFrameStack(4)",
    frame_skip=4,
    pooling="max_and_skip",
    grey="cv2",
    stack_padding="zeros",
    noop_max=30,
    fire_at_reset=True,
    life_loss="ends_episode",
    reward="sign",
    sticky=0.0,
    full_actions=False,
    max_frames=108_000,
    evaluation_max_frames=108_000,
)
_DOPAMINE = dataclasses.replace(
    _SB3,
    name="dopamine",
    reference="Dopamine: AtariPreprocessing, rewards clipped by its runner",
    pooling="dopamine",
    grey="ale",
    noop_max=0,
    fire_at_reset=False,
    life_loss="ignored",
    reward="clipped",
    sticky=0.25,
)
_CLEANRL = dataclasses.replace(
    _SB3,
    name="cleanrl",
    reference="CleanRL dqn_atari.py: its wrappers on Gymnasium's ResizeObservation, GrayscaleObservation and "
    "FrameStackObservation of today (1.x)",
    grey="gymnasium_after_resize",
    stack_padding="first_frame",
)

PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        dataclasses.replace(
            _SB3,
            name="nature",
            reference="the text of Mnih et al. 2015, as written down in tests/reference.py",
            pooling="last_two",
            grey="luminance",
            fire_at_reset=False,
            reward="clipped",
            evaluation_max_frames=18_000,
        ),
        _SB3,
        _CLEANRL,
        dataclasses.replace(
            _CLEANRL,
            name="cleanrl-0.28",
            reference="the same on the Gymnasium 0.28 that CleanRL pins, whose grey is cv2's",
            grey="cv2_after_resize",
        ),
        dataclasses.replace(
            _SB3,
            name="gymnasium",
            reference="Gymnasium: AtariPreprocessing + FrameStackObservation(4)",
            pooling="gymnasium",
            grey="ale",
            stack_padding="first_frame",
            fire_at_reset=False,
            life_loss="ignored",
            reward="raw",
        ),
        _DOPAMINE,
        dataclasses.replace(_DOPAMINE, name="machado", reference="dopamine with all 18 actions", full_actions=True),
    )
}
ALIASES = {"baselines": "sb3"}
DEFAULT_PROTOCOL = "sb3"
DEFAULT_STACK = 4  # frames in an observation, in every protocol


def protocol(name: str | Protocol) -> Protocol:
    """The protocol called ``name``.

    >>> protocol("baselines").name
    'sb3'
    """
    if isinstance(name, Protocol):
        return name
    if not isinstance(name, str):
        raise TypeError(f"protocol: {name!r} is neither a name nor a fastrl.Protocol")
    found = PROTOCOLS.get(ALIASES.get(name, name))
    if found is None:
        offered = [*PROTOCOLS, *ALIASES]
        raise ValueError(f"protocol: '{name}' is unknown{nearest(str(name), offered)}; known: {', '.join(offered)}")
    return found


def differences(a: Protocol, b: Protocol) -> dict[str, tuple[Any, Any]]:
    """Fields on which two protocols disagree, with both values.

    >>> differences(protocol("dopamine"), protocol("machado"))
    {'full_actions': (False, True)}
    """
    return {
        field.name: (getattr(a, field.name), getattr(b, field.name))
        for field in dataclasses.fields(Protocol)
        if field.name not in ("name", "reference") and getattr(a, field.name) != getattr(b, field.name)
    }
