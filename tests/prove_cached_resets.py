"""Find, by playing, the games whose resets may be replaced by a saved state; write the table the package ships.

Run as ``python tests/prove_cached_resets.py``. It is not collected by pytest: over all games it takes minutes.

The replacement. The pool would like to replace

    reset_game() and then k times act(NOOP)                    (64 or more emulated frames)

on an instance with any past by

    restoreState(S[k]) and the saved screens of no-ops k - 1 and k

where S[k] was saved, without the random generator of the actions, from one fresh instance that did reset_game()
and k no-ops. This script decides for which games the two are the same for every k from MIN_NOOPS to MAX_NOOPS.
The numbers 0 and 1 are never replaced, whatever the game: a state saved so close to a reset does not restore
exactly in every game.

What is shown for a game with ``cached: true``. Over ``histories`` varied pasts (see ``HISTORY_KINDS``) on several
instances, with k cycling over all its values:

* after the real reset and k no-ops, RAM, screens k - 1 and k, lives, rewards of the no-ops, game over and the whole
  serialized state equal those of the fresh instance (but for what ``comparable_state`` leaves out, with the reasons);
* another instance, with a past of its own (at least one act() after its last reset_game()), that restored S[k]
  then shows the same screen, RAM, reward, lives and game over at each frame of the same random actions, and the
  same serialized state at the end.

reset_game() draws the start value of the console's timer (75 values), and the content of RAM on a cartridge that has
some, from a generator that no reset rewinds. This is how most games come to depend on the past, and a handful of
resets may well not show it. So the draws are followed, and every other history steers the generator to a timer value
not drawn yet: ``timer_values`` counts those tried.

What is not shown: anything about sticky actions (the generator of the actions is not part of S[k]), other modes or
difficulties, other values of ``system_random_seed``, other versions of ale-py or ROMs with another checksum; and it
is a test on many pasts, not a proof from the game's code. A game with ``cached: false`` differed at least once, at
the history given, in the way its ``reason`` says; it may still be that no player could ever see the difference.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import multiprocessing
import struct
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ale_py
import numpy as np
from ale_py import roms

FORMAT = 1
MIN_NOOPS = 2
MAX_NOOPS = 30
MAX_FRAMES_PER_EPISODE = 108_000
# Games for two players only: loading one of them ends the process.
NO_SINGLE_PLAYER = frozenset({"combat", "joust", "maze_craze", "warlords"})
DEFAULT_TABLE = Path(__file__).resolve().parent.parent / "fastrl" / "engine" / "cached_resets.json"

NOOP, RIGHT, LEFT = 0, 3, 4
TIMER_VALUES = 75
HISTORIES_PER_INSTANCE = 30
FRAMES_AFTER_RESET = 150
LONG_FRAMES_AFTER_RESET = 1000
LONG_EVERY = 20
# Frames longer than those at the start by more than this are taken for irregular: a few lines more are common.
EXTRA_SCANLINES = 20
IRREGULAR_CAP = 500
GAME_OVER_CAP = 2500
RESTORED_GAME_OVER_CAP = 1500


class Difference(Exception):
    """The real and the replaced reset are not the same; the message says where."""


# ---------------------------------------------------------------------------------------------------------------------
# Serialized states: six ints (paddle positions, frame number, episode frame number, mode, difficulty), then the
# emulator's state as a string of records, then two ints (paddle limits). An int has 4 bytes, a string its length first.
# ---------------------------------------------------------------------------------------------------------------------
_FRAME_NUMBER_AT = 8
_LENGTH_AT = 24
_INNER_AT = 28
_SYSTEM = struct.pack("<i", 6) + b"System"
_TIMER_CHIP = struct.pack("<i", 5) + b"M6532"
_VIDEO_CHIP = struct.pack("<i", 3) + b"TIA"
_FALSE = struct.pack("<I", 0xBAD1BAD2)
# Fields of the two chips' records, in ints after the chip's name.
_CYCLES_WHEN_INTERRUPT_RESET = 1 + 128 + 3
_TIMER_READ_AFTER_INTERRUPT = 1 + 128 + 4
_FRAME_START_CLOCK = 0
_DISPLAY_STOP_CLOCK = 2
_CURRENT_SCANLINE = 6
_DUMP_DISABLED_CYCLE = 53
_CLOCKS_PER_SCANLINE = 228


def generator_span(state: bytes) -> tuple[int, int]:
    """Where the text of the console's random generator lies: 624 words and a position, as decimal numbers."""
    length_at = state.index(_SYSTEM) + len(_SYSTEM) + 4
    (length,) = struct.unpack_from("<i", state, length_at)
    return length_at + 4, length_at + 4 + length


def comparable_state(ale: ale_py.ALEInterface, has_paddles: bool) -> bytes:
    """The serialized state without what legitimately differs between two equal emulators.

    Left out: the frame number since the ROM was loaded; the console's random generator, which advances with each reset
    and is used for nothing but what a reset draws; the cycle of the last timer interrupt, which is only read
    after it was set anew (unless the flag beside it says that it was, then it is kept); and, without paddles, the
    cycle from which paddle capacitors charge.
    """
    state = ale.cloneState().serialize()
    blob = bytearray(state)
    timer_chip = state.index(_TIMER_CHIP) + len(_TIMER_CHIP)
    flag_at = timer_chip + 4 * _TIMER_READ_AFTER_INTERRUPT
    if state[flag_at : flag_at + 4] == _FALSE:
        reset_at = timer_chip + 4 * _CYCLES_WHEN_INTERRUPT_RESET
        blob[reset_at : reset_at + 4] = bytes(4)
    if not has_paddles:
        dump_at = state.index(_VIDEO_CHIP) + len(_VIDEO_CHIP) + 4 * _DUMP_DISABLED_CYCLE
        blob[dump_at : dump_at + 4] = bytes(4)
    blob[_FRAME_NUMBER_AT : _FRAME_NUMBER_AT + 4] = bytes(4)
    blob[_LENGTH_AT : _LENGTH_AT + 4] = bytes(4)  # depends on how many digits the generator's numbers have
    text_at, text_end = generator_span(state)
    del blob[text_at - 4 : text_end]
    return bytes(blob)


def scanlines(ale: ale_py.ALEInterface) -> tuple[int, int]:
    """How many scanlines the last frame had, and from how many on a frame covers the whole screen."""
    state = ale.cloneState().serialize()
    video_chip = state.index(_VIDEO_CHIP) + len(_VIDEO_CHIP)
    fields = struct.unpack_from(f"<{_CURRENT_SCANLINE + 1}i", state, video_chip)
    drawn = (fields[_DISPLAY_STOP_CLOCK] - fields[_FRAME_START_CLOCK]) // _CLOCKS_PER_SCANLINE
    return fields[_CURRENT_SCANLINE], drawn


def next_number(text: bytes) -> int:
    """What a console's random generator with this text draws next: it is the same Mersenne Twister as numpy's."""
    numbers = [int(number) for number in text.split()]
    if len(numbers) != 625:
        raise RuntimeError(f"expected 625 numbers in the console's random generator, found {len(numbers)}")
    generator = np.random.MT19937()
    state: Any = {"key": np.array(numbers[:624], dtype=np.uint32), "pos": numbers[624]}
    generator.state = {"bit_generator": "MT19937", "state": state}
    return int(generator.random_raw())


def next_timer_value(ale: ale_py.ALEInterface) -> int:
    """Which of the timer's start values the next reset_game() draws."""
    state = ale.cloneState().serialize()
    text_at, text_end = generator_span(state)
    return next_number(state[text_at:text_end]) % TIMER_VALUES


def generators_by_timer_value() -> list[bytes]:
    """For each start value of the timer the text of a generator that draws it next."""
    texts: dict[int, bytes] = {}
    seed = 0
    while len(texts) < TIMER_VALUES:
        seed += 1
        state = np.random.RandomState(seed).get_state(legacy=False)["state"]
        text = " ".join(str(number) for number in [*state["key"].tolist(), state["pos"]]).encode()
        texts.setdefault(next_number(text) % TIMER_VALUES, text)
    return [texts[value] for value in range(TIMER_VALUES)]


def with_generator(state: ale_py.ALEState, text: bytes) -> ale_py.ALEState:
    """The same state, with another text for the console's random generator."""
    old = state.serialize()
    text_at, text_end = generator_span(old)
    new = bytearray(old[: text_at - 4] + struct.pack("<i", len(text)) + text + old[text_end:])
    (length,) = struct.unpack_from("<i", old, _LENGTH_AT)
    struct.pack_into("<i", new, _LENGTH_AT, length + len(text) - (text_end - text_at))
    return ale_py.ALEState(bytes(new))


# ---------------------------------------------------------------------------------------------------------------------
# The reference: what a fresh instance shows after its reset and k no-ops.
# ---------------------------------------------------------------------------------------------------------------------
def new_instance(rom: Path, seed: int) -> ale_py.ALEInterface:
    ale = ale_py.ALEInterface()
    ale.setInt("random_seed", seed)
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("max_num_frames_per_episode", MAX_FRAMES_PER_EPISODE)
    ale.loadROM(rom)
    return ale


def uses_paddles(rom: Path) -> bool:
    """Whether the game's controller is a paddle: only then the actions move the paddle positions in the state."""
    ale = new_instance(rom, seed=0)
    ale.reset_game()
    before = ale.cloneState().serialize()[:4]
    for action in (RIGHT, RIGHT, LEFT, LEFT, LEFT, LEFT):
        ale.act(action)
        if ale.cloneState().serialize()[:4] != before:
            return True
    return False


@dataclass
class Moment:
    """One fresh instance after its reset and some no-ops."""

    saved: ale_py.ALEState
    comparable: bytes
    screen: np.ndarray
    ram: np.ndarray
    lives: int
    reward: int  # of the last no-op, 0 without one


def moment(ale: ale_py.ALEInterface, has_paddles: bool, reward: int) -> Moment:
    return Moment(
        saved=ale.cloneState(),
        comparable=comparable_state(ale, has_paddles),
        screen=ale.getScreen(),
        ram=ale.getRAM(),
        lives=ale.lives(),
        reward=reward,
    )


@dataclass
class Game:
    """One game under test: the reference, the buffers, and what has been tried so far."""

    rom: Path
    has_paddles: bool
    reference: list[Moment]
    minimal: list[int]
    legal: list[int]
    regular_scanlines: range
    generator_texts: list[bytes]
    screen_a: np.ndarray
    screen_b: np.ndarray
    ram_a: np.ndarray = field(default_factory=lambda: np.zeros(128, np.uint8))
    ram_b: np.ndarray = field(default_factory=lambda: np.zeros(128, np.uint8))
    timer_values: set[int] = field(default_factory=set)
    frames_compared: int = 0

    def reset(self, ale: ale_py.ALEInterface) -> None:
        """reset_game(), keeping account of the timer value that it draws."""
        self.timer_values.add(next_timer_value(ale))
        ale.reset_game()


def rom_path(name: str) -> Path:
    rom = roms.get_rom_path(name)
    if rom is None:
        raise RuntimeError(f"no ROM for {name}")
    return Path(rom)


def rom_checksum(name: str) -> str:
    return hashlib.md5(rom_path(name).read_bytes(), usedforsecurity=False).hexdigest()


def make_game(name: str, seed: int) -> Game:
    rom = rom_path(name)
    has_paddles = uses_paddles(rom)
    fresh = new_instance(rom, seed)
    fresh.reset_game()
    reference = [moment(fresh, has_paddles, reward=0)]
    line_counts: list[int] = []
    for k in range(1, MAX_NOOPS + 1):
        reward = fresh.act(NOOP)
        if fresh.game_over():
            # A state saved at game over does not restore exactly.
            raise Difference(f"the game is over after {k} no-ops")
        reference.append(moment(fresh, has_paddles, reward))
        lines, covering = scanlines(fresh)
        if k > MIN_NOOPS:  # the first frames after a reset are irregular in some games
            line_counts.append(lines)
    return Game(
        rom=rom,
        has_paddles=has_paddles,
        reference=reference,
        minimal=[action.value for action in fresh.getMinimalActionSet()],
        legal=[action.value for action in fresh.getLegalActionSet()],
        regular_scanlines=range(min(*line_counts, covering), max(line_counts) + EXTRA_SCANLINES + 1),
        generator_texts=generators_by_timer_value(),
        screen_a=np.zeros_like(reference[0].screen),
        screen_b=np.zeros_like(reference[0].screen),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Pasts
# ---------------------------------------------------------------------------------------------------------------------
def random_actions(game: Game, rng: np.random.Generator, count: int) -> list[int]:
    """Actions held for a random while each: pure noise seldom leaves the start position."""
    actions = game.legal if rng.random() < 0.2 else game.minimal
    longest = int(rng.integers(1, 25))
    played: list[int] = []
    while len(played) < count:
        action = actions[int(rng.integers(len(actions)))]
        played.extend([action] * int(rng.integers(1, longest + 1)))
    return played[:count]


def play(ale: ale_py.ALEInterface, actions: list[int]) -> None:
    for action in actions:
        ale.act(action)


def play_to_game_over(game: Game, ale: ale_py.ALEInterface, rng: np.random.Generator, cap: int) -> None:
    for start in range(0, cap, 100):
        play(ale, random_actions(game, rng, min(100, cap - start)))
        if ale.game_over():
            return


def past_irregular_frame(game: Game, ale: ale_py.ALEInterface, rng: np.random.Generator) -> None:
    """Play until a frame that does not cover the screen, or that the engine cut because it went on for too long.

    What such a frame leaves behind (pixels of older frames, and whether the next one continues it) is in no state.
    """
    for action in random_actions(game, rng, IRREGULAR_CAP):
        ale.act(action)
        if scanlines(ale)[0] not in game.regular_scanlines:
            return


def past_nothing(game: Game, ale: ale_py.ALEInterface, rng: np.random.Generator) -> None:
    """Resets with nothing between them."""
    for _ in range(int(rng.integers(0, 4))):
        game.reset(ale)


def past_noops(game: Game, ale: ale_py.ALEInterface, rng: np.random.Generator) -> None:
    play(ale, [NOOP] * int(rng.integers(1, 400)))


def past_held_action(game: Game, ale: ale_py.ALEInterface, rng: np.random.Generator) -> None:
    play(ale, [game.legal[int(rng.integers(len(game.legal)))]] * int(rng.integers(1, 400)))


def past_short_play(game: Game, ale: ale_py.ALEInterface, rng: np.random.Generator) -> None:
    play(ale, random_actions(game, rng, int(rng.integers(1, 250))))


def past_long_play(game: Game, ale: ale_py.ALEInterface, rng: np.random.Generator) -> None:
    play(ale, random_actions(game, rng, int(rng.integers(250, 1500))))


def past_game_over(game: Game, ale: ale_py.ALEInterface, rng: np.random.Generator) -> None:
    play_to_game_over(game, ale, rng, GAME_OVER_CAP)


def past_abandoned_noops(game: Game, ale: ale_py.ALEInterface, rng: np.random.Generator) -> None:
    """A reset whose no-ops are cut short by the next reset."""
    game.reset(ale)
    play(ale, [NOOP] * int(rng.integers(1, MAX_NOOPS + 1)))


def past_restored(game: Game, ale: ale_py.ALEInterface, rng: np.random.Generator) -> None:
    """The replaced reset, then play: the pool's real resets may follow replaced ones."""
    ale.act(NOOP)
    ale.restoreState(game.reference[int(rng.integers(MIN_NOOPS, MAX_NOOPS + 1))].saved)
    play(ale, random_actions(game, rng, int(rng.integers(1, 150))))


Past = Callable[[Game, ale_py.ALEInterface, np.random.Generator], None]
HISTORY_KINDS: list[tuple[Past, float]] = [
    (past_nothing, 0.12),
    (past_noops, 0.12),
    (past_held_action, 0.14),
    (past_short_play, 0.24),
    (past_long_play, 0.07),
    (past_game_over, 0.07),
    (past_irregular_frame, 0.06),
    (past_abandoned_noops, 0.06),
    (past_restored, 0.12),
]


def past_name(past: Past) -> str:
    return past.__name__.removeprefix("past_").replace("_", " ")


def steer(game: Game, ale: ale_py.ALEInterface) -> None:
    """Let the next reset draw a timer value not drawn yet, all else (but what no state holds) as it is."""
    value = min(set(range(TIMER_VALUES)) - game.timer_values)
    ale.restoreState(with_generator(ale.cloneState(), game.generator_texts[value]))
    if next_timer_value(ale) != value:
        raise RuntimeError("the console's random generator does not work as this script assumes")


def past_of_restored_instance(game: Game, ale: ale_py.ALEInterface, rng: np.random.Generator) -> None:
    """What the instance that restores did before. It played the last comparison already, so often nothing more."""
    kind = rng.random()
    if kind < 0.1:  # two replaced resets with nothing between them
        ale.restoreState(game.reference[int(rng.integers(MIN_NOOPS, MAX_NOOPS + 1))].saved)
    elif kind < 0.5:
        play(ale, random_actions(game, rng, int(rng.integers(1, 200))))
    elif kind < 0.6:
        play_to_game_over(game, ale, rng, RESTORED_GAME_OVER_CAP)
    elif kind < 0.7:  # a real reset, and the one act() without which a restore is not exact
        ale.reset_game()
        ale.act(NOOP)
    elif kind < 0.8:
        past_irregular_frame(game, ale, rng)


# ---------------------------------------------------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------------------------------------------------
def compare_with_reference(game: Game, ale: ale_py.ALEInterface, k: int) -> None:
    """Reset for real, play k no-ops, and compare the last two frames with the fresh instance's."""
    game.reset(ale)
    for noops in range(k + 1):
        expected = game.reference[noops]
        reward = ale.act(NOOP) if noops else 0
        where = f"after reset_game() and {noops} no-ops"
        if reward != expected.reward:
            raise Difference(f"reward {where}")
        if noops < k - 1:
            continue
        game.frames_compared += 1
        ale.getRAM(game.ram_a)
        ale.getScreen(game.screen_a)
        if not np.array_equal(game.ram_a, expected.ram):
            raise Difference(f"RAM {where}")
        if not np.array_equal(game.screen_a, expected.screen):
            raise Difference(f"screen {where}")
        if ale.lives() != expected.lives:
            raise Difference(f"lives {where}")
        if ale.game_over():
            raise Difference(f"game over {where}")
    if comparable_state(ale, game.has_paddles) != game.reference[k].comparable:
        raise Difference(f"serialized state after reset_game() and {k} no-ops")


def compare_play(game: Game, real: ale_py.ALEInterface, restored: ale_py.ALEInterface, actions: list[int]) -> None:
    """Play the same actions on both and compare each frame."""
    for frame, action in enumerate(actions, start=1):
        where = f"{frame} frames after the restore"
        if real.act(action) != restored.act(action):
            raise Difference(f"reward {where}")
        real.getRAM(game.ram_a)
        restored.getRAM(game.ram_b)
        if not np.array_equal(game.ram_a, game.ram_b):
            raise Difference(f"RAM {where}")
        real.getScreen(game.screen_a)
        restored.getScreen(game.screen_b)
        if not np.array_equal(game.screen_a, game.screen_b):
            raise Difference(f"screen {where}")
        if real.lives() != restored.lives():
            raise Difference(f"lives {where}")
        if real.game_over() != restored.game_over():
            raise Difference(f"game over {where}")
        game.frames_compared += 1
    if comparable_state(real, game.has_paddles) != comparable_state(restored, game.has_paddles):
        raise Difference(f"serialized state {len(actions)} frames after the restore")


def prove_game(name: str, histories: int, seed: int) -> dict[str, Any]:
    """The table's entry for one game."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    entry: dict[str, Any] = {"rom_md5": rom_checksum(name), "cached": False}
    history = 0
    kind = "none"
    try:
        game = make_game(name, seed)
        kinds = [past for past, _ in HISTORY_KINDS]
        shares = np.array([share for _, share in HISTORY_KINDS])
        # A permutation at a time: each k has its turn, next to ever other ones, with ever other pasts.
        noop_counts: list[int] = []
        for history in range(histories):
            if history % HISTORIES_PER_INSTANCE == 0:
                real = new_instance(game.rom, seed=int(rng.integers(2**31)))
                restored = new_instance(game.rom, seed=int(rng.integers(2**31)))
                restored.reset_game()
                restored.act(NOOP)
            if not noop_counts:
                noop_counts = [int(k) for k in rng.permutation(MAX_NOOPS + 1)]
            k = noop_counts.pop()

            past = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
            kind = past_name(past)
            past(game, real, rng)
            if history % 2 and len(game.timer_values) < TIMER_VALUES:
                steer(game, real)
            compare_with_reference(game, real, k)
            if k < MIN_NOOPS:
                continue  # never replaced: only the real reset is compared

            past_of_restored_instance(game, restored, rng)
            restored.restoreState(game.reference[k].saved)
            restored.getRAM(game.ram_b)
            if not np.array_equal(game.ram_b, game.reference[k].ram):
                raise Difference(f"RAM right after the restore of {k} no-ops")
            if comparable_state(restored, game.has_paddles) != game.reference[k].comparable:
                raise Difference(f"serialized state right after the restore of {k} no-ops")
            long = history % LONG_EVERY == LONG_EVERY - 1
            actions = random_actions(game, rng, LONG_FRAMES_AFTER_RESET if long else FRAMES_AFTER_RESET)
            compare_play(game, real, restored, actions)
    except Difference as difference:
        entry.update(reason=str(difference), history=history, past=kind)
        return entry
    entry.update(
        cached=True,
        histories=histories,
        frames_compared=game.frames_compared,
        timer_values=len(game.timer_values),
    )
    return entry


# ---------------------------------------------------------------------------------------------------------------------
# All games, one process each: the engine ends its process on some errors
# ---------------------------------------------------------------------------------------------------------------------
def _child(connection: Connection, name: str, histories: int, seed: int) -> None:
    connection.send(prove_game(name, histories, seed))
    connection.close()


def prove_in_process(name: str, histories: int, seed: int, timeout_s: float) -> dict[str, Any] | None:
    """The game's entry; None where the time was not enough, which says nothing about the game."""
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, name, histories, seed))
    process.start()
    sender.close()
    entry: dict[str, Any] | None = None
    try:
        if receiver.poll(timeout_s):
            entry = receiver.recv()
        else:
            process.kill()
    except EOFError:
        entry = {"rom_md5": rom_checksum(name), "cached": False, "reason": "the process ended without an answer"}
    process.join()
    receiver.close()
    return entry


def write_table(path: Path, games: dict[str, dict[str, Any]], histories: int, seed: int) -> None:
    head = {
        "format": FORMAT,
        "ale_py": ale_py.__version__,
        "made_by": "python tests/prove_cached_resets.py",
        "date": datetime.date.today().isoformat(),
        "histories_per_game": histories,
        "seed": seed,
        "min_noops": MIN_NOOPS,
        "max_noops": MAX_NOOPS,
    }
    # One line per game: short, and a change of one game is a change of one line.
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    rows = [f"    {json.dumps(name)}: {json.dumps(games[name])}" for name in sorted(games)]
    path.write_text("{\n" + "\n".join(lines) + '\n  "games": {\n' + ",\n".join(rows) + "\n  }\n}\n", encoding="utf-8")


def contradiction(committed: dict[str, Any] | None, found: dict[str, Any], histories: int) -> str | None:
    """How a recomputed entry contradicts the committed one, if it does."""
    if committed is None:
        return "not in the table"
    if found.get("rom_md5") != committed.get("rom_md5"):
        return "another ROM"
    if committed["cached"]:
        return None if found["cached"] else f"the table says cached, now: {found['reason']}"
    # With fewer histories than the difference took, nothing can be said about a game found to differ.
    if found["cached"] and committed.get("history", histories) < histories:
        return f"the table says '{committed['reason']}', now no difference"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description="Find the games whose resets may be replaced by a saved state.")
    parser.add_argument("--games", help="names with commas between them (default: all)")
    parser.add_argument("--histories", type=int, default=120, help="varied pasts per game (default 120)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=DEFAULT_TABLE, help="the table (default: the package's)")
    parser.add_argument("--check", action="store_true", help="compare with the table instead of writing it")
    parser.add_argument("--game-timeout", type=float, default=1800.0, help="seconds for one game (default 1800)")
    options = parser.parse_args()

    known = sorted(set(roms.get_all_rom_ids()) - NO_SINGLE_PLAYER)
    names = sorted(set(options.games.split(","))) if options.games else known
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"unknown or for two players only: {', '.join(unknown)}")
    table: dict[str, Any] = {}
    if options.check:
        table = json.loads(options.output.read_text(encoding="utf-8"))
        if table["ale_py"] != ale_py.__version__:
            print(f"the table is for ale-py {table['ale_py']}, this is {ale_py.__version__}")
            return 1
    elif options.games and options.output == DEFAULT_TABLE:
        parser.error("--games would write a table of these games only: name another --output, or use --check")

    started = time.monotonic()
    games: dict[str, dict[str, Any]] = {}
    contradictions: list[str] = []
    for name in names:
        game_started = time.monotonic()
        entry = prove_in_process(name, options.histories, options.seed, options.game_timeout)
        seconds = time.monotonic() - game_started
        if entry is None:
            print(f"{name}: no answer in {seconds:.0f} s; nothing is written (see --game-timeout)")
            return 1
        games[name] = entry
        if entry["cached"]:
            verdict = f"cached      {entry['frames_compared']} frames, {entry['timer_values']} timer values"
        else:
            verdict = f"not cached  {entry['reason']}"
            if "history" in entry:
                verdict += f" (history {entry['history']}: {entry['past']})"
        print(f"{name:<20} {seconds:6.1f} s  {verdict}", flush=True)
        if options.check:
            problem = contradiction(table["games"].get(name), entry, options.histories)
            if problem is not None:
                contradictions.append(f"{name}: {problem}")
    cached = sum(entry["cached"] for entry in games.values())
    print(f"{len(games)} games, {cached} cached, {time.monotonic() - started:.0f} s")
    if options.check:
        print("\n".join(contradictions) or "agrees with the table")
        return 1 if contradictions else 0
    write_table(options.output, games, options.histories, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
