"""The bridge to the engine inside ale-py: an engine that does not fit is refused with help, before it can do harm.

Engines that do not fit are made from fake_engine.cpp, a toy that exports the names the bridge looks up. Whatever might
crash runs in a process of its own, where a crash is seen as one.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ale_py
import numpy as np
import pytest
from ale_py import _ale_py

from fastrl.engine import native
from fastrl.engine.games import rom_path

FAKE_SOURCE = Path(__file__).parent / "fake_engine.cpp"
ALE_FILE = _ale_py.__file__
CORES = len(os.sched_getaffinity(0))

# Opens the engine in argv[1], loaded before or not, with the layout in argv[3], and says what came of it.
OPEN = """
import ctypes, json, sys
import ale_py
from fastrl.engine import native
from fastrl.engine.games import rom_path

file, loaded, layout = sys.argv[1], sys.argv[2] == "loaded", json.loads(sys.argv[3])
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
if loaded:
    ctypes.CDLL(file)
try:
    native.open_engine(file, rom_path("breakout"), **layout)
except RuntimeError as error:
    print("refused:", error)
else:
    print("accepted")
"""

# Saves a state of the fake engine in argv[1], without the comparison with ale-py that it could not pass.
SAVE = """
import ctypes, sys
from fastrl.engine import native

ctypes.CDLL(sys.argv[1])
console = native.core.Emulator(native.core.open_engine(sys.argv[1]))
console.load_rom("toy.bin", 1, 0.25, 0)
console.reset_game()
for _ in range(10):
    console.act(0)
try:
    console.save()
except RuntimeError as error:
    print("refused:", error)
else:
    print("accepted")
"""


def said_by(code: str, *arguments: str) -> str:
    """What ``code`` prints in a process of its own, which must end by itself and in peace."""
    # -P: the package that these tests import, not one that happens to lie in the working directory.
    run = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, f"the process ended with {run.returncode}: {run.stderr[-2000:]}"
    return run.stdout


def opening(file: str | Path, *, loaded: bool = True, **layout: int) -> str:
    return said_by(OPEN, str(file), "loaded" if loaded else "not loaded", json.dumps(layout))


@pytest.fixture(scope="session")
def fake_engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compiles a variant of the fake engine, once."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no C++ compiler: '{compiler[0]}' is not found; set CXX")
    folder = tmp_path_factory.mktemp("fake_engine")

    def compiled(variant: str) -> Path:
        library = folder / f"{variant.lower()}.so"
        if not library.exists():
            command = [*compiler, "-std=c++20", "-O0", "-fPIC", "-shared", f"-D{variant}", str(FAKE_SOURCE)]
            run = subprocess.run([*command, "-o", str(library)], capture_output=True, text=True, check=False)
            assert run.returncode == 0, run.stderr
        return library

    return compiled


# ---- What lacks something


def assert_helps(said: str) -> None:
    """Each refusal names the version found, the versions supported and what to do."""
    assert said.startswith("refused:"), said
    assert f"Found ale-py {importlib.metadata.version('ale-py')} at " in said
    assert native.SUPPORTED_ALE_PY in said
    assert "pip install" in said


def test_a_module_that_is_not_loaded_is_refused(fake_engine: Callable[[str], Path]) -> None:
    said = opening(fake_engine("FAKE_HEALTHY"), loaded=False)

    assert_helps(said)
    assert "is not loaded in this process" in said


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    said = opening(tmp_path / "nothing.so", loaded=False)

    assert_helps(said)
    assert "nothing.so' is not loaded" in said


def test_a_module_without_the_functions_is_refused_by_the_first_name() -> None:
    from numpy._core import _multiarray_umath

    said = opening(_multiarray_umath.__file__)

    assert_helps(said)
    assert f"lacks the function {native.core.engine_symbols()[0]}" in said


def test_an_engine_without_one_function_is_refused_by_its_name(fake_engine: Callable[[str], Path]) -> None:
    said = opening(fake_engine("FAKE_LACKS_ACT"))

    assert_helps(said)
    assert "lacks the function _ZN3ale12ALEInterface3actENS_6ActionEf" in said


def test_ale_py_has_every_function_by_its_name() -> None:
    module = ctypes.CDLL(ALE_FILE)
    names = native.core.engine_symbols()

    assert len(names) == len(set(names)) > 20
    assert [name for name in names if not hasattr(module, name)] == []


# ---- What is laid out or plays differently


@pytest.mark.parametrize(
    "layout",
    [
        {"screen_rows": 4},
        {"screen_rows": 8},
        {"screen_columns": 0},
        {"screen_columns": 8},
        {"screen_pixels": 0},
        {"screen_pixels": 16},
        {"screen_pixels": 24},
        {"state_text": 0},
        {"state_text": 8},
        {"state_text": 16},
        {"state_text": 32},
        {"state_text": 40},
        {"state_text": 48},
        {"state_text": 224},
        {"state_text": 4096},
    ],
    ids=lambda layout: "_".join(f"{name}_{offset}" for name, offset in layout.items()),
)
def test_a_wrong_layout_is_refused_without_a_crash(layout: dict[str, int]) -> None:
    said = opening(ALE_FILE, **layout)

    assert_helps(said)
    assert "engine self-check:" in said
    assert ("ALEScreen" if "screen" in next(iter(layout)) else "ALEState") + " is not laid out as expected" in said


def test_an_engine_with_another_screen_is_refused(fake_engine: Callable[[str], Path]) -> None:
    said = opening(fake_engine("FAKE_WRONG_SCREEN"))

    assert_helps(said)
    assert "ALEScreen is not laid out as expected" in said


def test_an_engine_with_another_state_is_refused(fake_engine: Callable[[str], Path]) -> None:
    said = said_by(SAVE, str(fake_engine("FAKE_WRONG_STATE")))

    assert "refused: engine self-check: ALEState is not laid out as expected" in said
    assert said_by(SAVE, str(fake_engine("FAKE_HEALTHY"))) == "accepted\n"  # so it was the layout


@pytest.mark.parametrize("variant", ["FAKE_HEALTHY", "FAKE_WRONG_REWARD"])
def test_an_engine_that_plays_another_game_is_refused(fake_engine: Callable[[str], Path], variant: str) -> None:
    said = opening(fake_engine(variant))

    assert_helps(said)
    assert "engine self-check: frame 0: reward, lives, end are" in said
    assert "but ale-py says" in said
    assert "the screens differ" in said


class Differing:
    """A bound emulator with one answer changed, from its frame 150 on where it has to do with frames."""

    def __init__(self, emulator: Any, answer: str) -> None:
        self._emulator = emulator
        self._answer = answer
        self._frames = 0

    def _changes(self, answer: str) -> bool:
        return answer == self._answer and self._frames >= 150

    def act(self, action: int) -> int:
        self._frames += 1
        return self._emulator.act(action) + self._changes("act")

    def lives(self) -> int:
        return self._emulator.lives() + self._changes("lives")

    def game_over(self) -> bool:
        return self._emulator.game_over() != self._changes("game_over")

    def screen(self) -> Any:
        screen = self._emulator.screen()
        screen[-1, -1] ^= 2 * self._changes("screen")
        return screen

    def ram(self) -> Any:
        ram = self._emulator.ram()
        ram[127] ^= self._changes("ram")
        return ram

    def minimal_actions(self) -> list[int]:
        actions = self._emulator.minimal_actions()
        return actions[::-1] if self._answer == "minimal_actions" else actions

    def guard_intact(self) -> bool:
        return self._emulator.guard_intact() and self._answer != "guard_intact"

    def save(self) -> Any:
        if self._answer == "save":
            self._emulator.act(3)  # a save that is not without effect
        return self._emulator.save()

    def load_rom(self, *arguments: Any) -> None:
        self._emulator.load_rom(*arguments)

    def frame_number(self) -> int:
        return self._emulator.frame_number() + self._changes("frame_number")

    def truncated(self) -> bool:
        return self._emulator.truncated() != self._changes("truncated")

    def restore(self, state: bytes) -> None:
        self._emulator.restore(state)
        if self._answer == "restore":
            self._emulator.act(3)  # a state that is not quite the saved one


@pytest.mark.parametrize(
    "answer",
    [
        *("act", "lives", "game_over", "truncated", "frame_number", "screen", "ram", "minimal_actions"),
        *("guard_intact", "save", "restore"),
    ],
)
def test_one_answer_that_differs_from_ale_py_is_refused(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = native.engine()
    real = native.core.Emulator
    monkeypatch.setattr(native, "core", SimpleNamespace(Emulator=lambda bound: Differing(real(bound), answer)))

    with pytest.raises(RuntimeError, match="engine self-check: "):
        native.check_engine(engine, rom_path("breakout"))


# ---- What fits


@pytest.mark.alone
def test_the_right_engine_passes_within_a_second() -> None:
    native.engine()  # imports and the first reading of files are not the check's
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        native.open_engine(ALE_FILE, rom_path("breakout"))
        seconds.append(time.perf_counter() - began)

    assert min(seconds) < 1


def test_a_saved_console_goes_on_alike_in_another() -> None:
    def console() -> Any:
        emulator = native.core.Emulator(native.engine())
        emulator.load_rom(str(rom_path("pong")), 3, 0.0, 0)
        emulator.reset_game()
        emulator.act(0)  # the engine restores exactly only into a console that has acted
        return emulator

    def played(emulator: Any) -> list[Any]:
        seen = []
        for action in np.random.default_rng(5).integers(6, size=400).tolist():
            seen.append((emulator.act(action), emulator.lives(), emulator.screen().tobytes(), emulator.ram().tobytes()))
        return seen

    first = console()
    for action in np.random.default_rng(4).integers(6, size=300).tolist():
        first.act(action)
    state = first.save()
    expected = played(first)
    second = console()
    second.restore(state)

    assert played(second) == expected
    first.restore(state)
    assert played(first) == expected
    assert first.save() == second.save()


def test_numbers_are_those_of_numpy(session_seed: int) -> None:
    choose = np.random.default_rng(session_seed)
    edges = [(0, 0), (1, 30), (0, 1), (7, 7), (0, 2**31 - 1), (0, 2**31 - 2), (1, 2**31 - 1), (5, 2**30)]
    for _ in range(40):
        seed = int(choose.integers(2**63))
        bits = np.random.PCG64(seed)
        words = bits.state["state"]
        low = 2**64 - 1
        ours = native.core.NumpyRandom(
            words["state"] >> 64, words["state"] & low, words["inc"] >> 64, words["inc"] & low, 0, 0
        )
        theirs = np.random.Generator(bits)
        for _ in range(400):
            if choose.random() < 0.3:
                first, last = edges[int(choose.integers(len(edges)))]
            else:
                size = 2 ** int(choose.integers(31))
                first = int(choose.integers(2**31 - size))
                last = first + int(choose.integers(size))
            assert ours.integers(first, last) == int(theirs.integers(first, last + 1)), (seed, first, last)


# ---- Emulation without the interpreter's lock


def playing(frames: int) -> Callable[[], None]:
    emulator = native.core.Emulator(native.engine())
    emulator.load_rom(str(rom_path("breakout")), 1, 0.0, 0)
    emulator.reset_game()
    actions = np.random.default_rng(1).choice([0, 1, 3, 4], size=frames).tolist()
    return lambda: emulator.act_many(actions)


@pytest.mark.alone
def test_python_goes_on_while_an_emulator_plays() -> None:
    play = playing(10_000)
    worker = threading.Thread(target=play)
    began = time.perf_counter()
    worker.start()
    longest_pause = 0.0
    before = began
    while worker.is_alive():
        now = time.perf_counter()
        longest_pause = max(longest_pause, now - before)
        before = now
    worker.join()
    whole = time.perf_counter() - began

    # Held for the whole call, the lock would stop this thread for all of it.
    assert longest_pause < whole / 2


@pytest.mark.alone
@pytest.mark.skipif(CORES < 2, reason="one core: two threads cannot be faster")
def test_two_threads_play_nearly_twice_as_fast() -> None:
    plays = [playing(4_000) for _ in range(2)]
    buffer = bytes(2**24)

    def hash_much() -> None:  # known to let go of the lock: what this machine's cores give just now
        for _ in range(15):
            hashlib.sha256(buffer)

    def seconds(*jobs: Callable[[], None]) -> float:
        threads = [threading.Thread(target=job) for job in jobs]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began

    machine = []
    for _ in range(6):  # other processes may take a core away for a while
        if 2 * seconds(plays[0]) / seconds(*plays) > 1.5:
            return
        machine.append(2 * seconds(hash_much) / seconds(hash_much, hash_much))
    if statistics.median(machine) < 1.6:
        pytest.skip(f"the cores are busy: two threads that hash are {statistics.median(machine):.2f} times as fast")
    pytest.fail("two threads that play were never more than 1.5 times as fast as one")


def test_the_engine_is_bound_once() -> None:
    assert native.engine() is native.engine()
    assert ale_py.__version__ == native.build_info()["ale_py"]
