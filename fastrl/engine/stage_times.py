"""What each part of stepping Atari games costs on this machine. ``fastrl profile`` prints it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrl.engine import native
from fastrl.engine.atari_pool import AtariPool
from fastrl.engine.games import find_game, rom_md5, rom_path
from fastrl.engine.protocol import DEFAULT_PROTOCOL, DEFAULT_STACK, Protocol
from fastrl.engine.rules import native_rules, resolved_protocol
from fastrl.engine.seeding import env_seed

# What an env does besides emulating, in the order in which it does it.
OWN_STAGES = ("keep_screens", "reduce", "write_stack", "rest")


@dataclass(frozen=True)
class StageTimes:
    """``num_envs`` envs in turn on one thread. Microseconds a step, resets included, medians over repeats."""

    game: str
    num_envs: int
    protocol: Protocol
    steps: int
    frames_per_step: float
    stage_us: dict[str, float]  # stamped; the stamps' own time is taken out (of all but "rest")
    step_us: float  # the whole step, measured without stamps
    act_loop_us: float  # the bare engine, making the same calls
    stamp_ns: float

    @property
    def own_us(self) -> float:
        """What a step costs besides the engine."""
        return sum(self.stage_us[name] for name in OWN_STAGES)


def rules_for(env_id: str, protocol: str | Protocol, **changes: Any) -> dict[str, Any]:
    """The native rules of a game under a protocol, for measurements without a pool."""
    game = find_game(env_id)
    rom = rom_path(game.name)
    rules = resolved_protocol(protocol, game.sticky, **changes)
    native_form = native_rules(rules, game.name, rom, rom_md5(rom), DEFAULT_STACK, None, None, None, None)
    native_form.pop("palette_rgb")
    return native_form


class BareEngine:
    """The engine alone, making the very calls that one env of a pool makes: the limit of any pool on this engine.

    Resets that the pool jumps over are emulated here, so a pool can be faster than this.
    """

    def __init__(self, env_id: str, protocol: str | Protocol, seed: int, actions: Sequence[Sequence[int]]) -> None:
        rules = rules_for(env_id, protocol)
        seeds = env_seed(seed)
        self._chunks: list[bytes] = native.core.record_calls(native.engine(), rules, seeds, actions)
        self.console = native.core.Emulator(native.engine())
        self.console.load_rom(rules["rom"], seeds[0], rules["sticky"], rules["max_frames"])
        self._next = 0

    def play_next(self) -> int:
        """Make the calls of the next row of actions; how many they were."""
        calls = self.take_next()
        self.console.replay(calls)
        return len(calls)

    def take_next(self) -> bytes:
        """The calls of the next row of actions, for whoever makes them."""
        calls = self._chunks[self._next % len(self._chunks)]
        self._next += 1
        return calls


def play_in_turn(engines: Sequence[BareEngine], rows: int) -> None:
    """The next ``rows`` rows of all, one row of each at a time, as a pool goes through its envs."""
    calls = [[engine.take_next() for engine in engines] for _ in range(rows)]
    native.core.replay_in_turn([engine.console for engine in engines], calls)


def _random_actions(count: int, choices: int, seed: int) -> list[int]:
    return [int(a) for a in np.random.default_rng(seed).integers(choices, size=count)]


def _stamp_ns() -> float:
    """What one stamp costs: two readings of the clock."""
    samples = []
    for _ in range(5):
        began = time.perf_counter_ns()
        for _ in range(10_000):
            time.perf_counter_ns()
        samples.append((time.perf_counter_ns() - began) / 10_000)
    # Python's own loop is in it too, so this bounds two native readings from above.
    return min(samples)


def stage_times(
    env_id: str,
    protocol: str | Protocol = DEFAULT_PROTOCOL,
    steps: int = 2000,
    repeats: int = 3,
    num_envs: int = 1,
) -> StageTimes:
    """Play ``env_id`` with random actions on this thread and say where the time went.

    With many envs in turn, as in a pool, what one env touches has left the nearer caches when its turn comes again.

    >>> times = stage_times("pong", steps=200, repeats=1)
    >>> times.step_us > times.own_us
    True
    """
    game = find_game(env_id)
    rules = resolved_protocol(protocol, game.sticky)
    native_form = rules_for(env_id, protocol)
    engine = native.engine()
    stamp_ns = _stamp_ns()
    stages: dict[str, list[float]] = {}
    whole, bare, frames_per_step = [], [], []
    for repeat in range(repeats):
        actions = _random_actions(steps, len(native_form["actions"]), seed=repeat)
        plain = native.core.time_stages(engine, native_form, repeat, actions, num_envs, False)
        stamped = native.core.time_stages(engine, native_form, repeat, actions, num_envs, True)
        whole.append(plain["whole"][0] / steps / 1e3)
        frames = plain["frames"]
        frames_per_step.append(frames / steps)
        for name, (nanoseconds, stamps) in _stamped(stamped):
            stages.setdefault(name, []).append(max(0.0, nanoseconds - stamps * stamp_ns) / steps / 1e3)
        unstamped = stamped["whole"][0] - sum(ns for _, (ns, _) in _stamped(stamped))
        stages.setdefault("rest", []).append(max(0.0, unstamped / steps / 1e3))
        alone = BareEngine(env_id, protocol, repeat, [actions])
        began = time.perf_counter_ns()
        alone.play_next()
        bare.append((time.perf_counter_ns() - began) / steps / 1e3)
    return StageTimes(
        game=game.name,
        num_envs=num_envs,
        protocol=rules,
        steps=steps,
        frames_per_step=statistics.median(frames_per_step),
        stage_us={name: statistics.median(values) for name, values in stages.items()},
        step_us=statistics.median(whole),
        act_loop_us=statistics.median(bare),
        stamp_ns=stamp_ns,
    )


def _stamped(times: dict[str, tuple[int, int]]) -> list[tuple[str, tuple[int, int]]]:
    return [(name, value) for name, value in times.items() if name not in ("whole", "frames")]


def pool_steps_per_s(env_id: str, protocol: str | Protocol, num_envs: int, threads: int, seconds: float) -> float:
    """Agent steps a second of a pool, random actions, autoresets counted as steps."""
    pool = AtariPool(env_id, num_envs, protocol, threads=threads)
    pool.reset(seed=0)
    rng = np.random.default_rng(0)
    actions = rng.integers(pool.num_actions, size=(64, num_envs))
    buffer = np.empty(pool.observation_space.shape or (), dtype=np.uint8)
    for row in actions[:16]:
        pool.step(row, out=buffer)
    began = time.perf_counter()
    rounds = 0
    while time.perf_counter() - began < seconds:
        pool.step(actions[rounds % 64], out=buffer)
        rounds += 1
    speed = rounds * num_envs / (time.perf_counter() - began)
    pool.close()
    return speed
