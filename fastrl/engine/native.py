"""The native part: imported with help when it is missing or stale, and checked against ale-py before first use."""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE_DIR = Path(__file__).resolve().parents[1]
BUILD_COMMAND = "pip install ."
# Where the layout of the engine inside ale-py has been checked. pyproject.toml asks pip for the same range.
SUPPORTED_ALE_PY = "ale-py >=0.12.1,<0.13"

try:
    __version__ = importlib.metadata.version("fastrl")
except importlib.metadata.PackageNotFoundError:  # the tree itself is on the path, nothing was installed
    __version__ = "0+unknown"


def _import_core() -> Any:
    installed = _installed_core()
    if installed is not None:
        return installed
    try:
        from fastrl import _core
    except ImportError as error:
        raise ImportError(
            f"fastrl's native part is missing or does not load ({error}). It is compiled by installing: run\n"
            f"    {BUILD_COMMAND}\n"
            f"in the source tree, with the Python you are running now. If you did, you are probably importing the "
            f"source tree {PACKAGE_DIR} instead of the installed package: run from another directory, or install "
            f"with `pip install -e .`."
        ) from error
    return _core


def _installed_core() -> Any:
    """The extension of the installed package, where this is the source tree, which has none.

    ``pip install .`` and then ``python -m fastrl.dqn`` in the same directory is the first thing that people do, and
    Python looks into the directory first. Whether the extension is of these sources is checked afterwards.
    """
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    is_tree = (PACKAGE_DIR.parent / "CMakeLists.txt").is_file() and (PACKAGE_DIR.parent / "csrc").is_dir()
    if not is_tree or any((PACKAGE_DIR / f"_core{suffix}").is_file() for suffix in suffixes):
        return None
    name = "fastrl._core"
    for directory in sys.path:
        for suffix in suffixes:
            path = Path(directory) / "fastrl" / f"_core{suffix}"
            if not path.is_file():
                continue
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules[name] = module
            return module
    return None


def source_hash(sources: Path) -> str:
    """Hash of the C++ sources under ``sources``, as CMakeLists.txt computes it when it compiles them."""
    digest = hashlib.sha256()
    for file in sorted(sources.rglob("*.[ch]pp"), key=lambda f: f.relative_to(sources).as_posix()):
        digest.update(hashlib.sha256(file.read_bytes()).hexdigest().encode())
    return digest.hexdigest()[:16]


def _refuse_stale(built: Any) -> None:
    if __version__ != "0+unknown" and built.version != __version__:
        raise ImportError(
            f"fastrl's native part was compiled for version {built.version}, the Python part is {__version__}: run "
            f"`{BUILD_COMMAND}` in the source tree again."
        )
    sources = PACKAGE_DIR.parent / "csrc"
    ours = sources.is_dir() and (PACKAGE_DIR.parent / "CMakeLists.txt").is_file()
    if ours and source_hash(sources) != built.source_hash:
        raise ImportError(
            f"fastrl's native part is older than the C++ sources in {sources}: run `{BUILD_COMMAND}` in the source "
            f"tree again (`pip install -e .` if you edit them)."
        )


core = _import_core()
_refuse_stale(core)


def build_info() -> dict[str, Any]:
    """How this fastrl was compiled and what it found on this machine.

    >>> sorted(build_info())  # doctest: +NORMALIZE_WHITESPACE
    ['ale_py', 'build_type', 'compile_flags', 'compiler', 'cpu_path', 'cpu_paths', 'source_hash',
     'supported_ale_py', 'version']
    """
    return {
        "version": core.version,
        "compiler": core.compiler,
        "compile_flags": core.compile_flags,
        "build_type": core.build_type,
        "source_hash": core.source_hash,
        "cpu_paths": core.available_cpu_paths(),
        "cpu_path": core.best_cpu_path(),
        "ale_py": importlib.metadata.version("ale-py"),
        "supported_ale_py": SUPPORTED_ALE_PY,
    }


def open_engine(module_file: str | None, rom: Path, **layout: int) -> Any:
    """Bind the emulator inside the loaded module ``module_file`` and play ``rom`` on it to see that it is right."""
    version = importlib.metadata.version("ale-py")
    try:
        engine = core.open_engine(module_file, **layout)
        check_engine(engine, rom)
    except RuntimeError as error:
        raise RuntimeError(
            f"{error}. Found ale-py {version} at {module_file}; this fastrl supports {SUPPORTED_ALE_PY}: install one "
            f"of these (`pip install '{SUPPORTED_ALE_PY}'`) or a fastrl that supports yours."
        ) from error
    return engine


@lru_cache(maxsize=1)
def engine() -> Any:
    """The emulator, bound and checked once in a process."""
    import ale_py

    from fastrl.engine.games import rom_path

    # ALE greets on the console unless told to report errors only before the first emulator is made.
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return open_engine(importlib.import_module("ale_py._ale_py").__file__, rom_path("breakout"))


def check_engine(bound_engine: Any, rom: Path, frames: int = 240) -> None:
    """Play ``rom`` through ale-py's own Python face and through the bound functions; refuse any difference."""
    import ale_py

    seed, sticky, frame_limit = 7, 0.25, 108_000
    reference = ale_py.ALEInterface()
    reference.setFloat("repeat_action_probability", sticky)
    reference.setInt("max_num_frames_per_episode", frame_limit)
    reference.setInt("random_seed", seed)
    reference.loadROM(rom)
    bound = core.Emulator(bound_engine)
    if not bound.guard_intact():
        raise RuntimeError("engine self-check: the engine's object is larger than expected")
    bound.load_rom(str(rom), seed, sticky, frame_limit)
    actions = [a.value for a in reference.getMinimalActionSet()]
    if actions != bound.minimal_actions():
        raise RuntimeError(f"engine self-check: actions {bound.minimal_actions()} differ from ale-py's {actions}")
    saved = b""
    for frame, choice in enumerate(np.random.default_rng(0).integers(len(actions), size=frames)):
        if frame == frames // 2:
            saved = bound.save()  # must change nothing
        action = actions[choice]
        ours = (bound.act(action), bound.lives(), bound.game_over())
        theirs = (reference.act(ale_py.Action(action)), reference.lives(), reference.game_over(with_truncation=False))
        same_screen = np.array_equal(bound.screen(), reference.getScreen())
        if bound.frame_number() != reference.getFrameNumber() or bound.truncated() != reference.game_truncated():
            raise RuntimeError(f"engine self-check: frame {frame}: frame number or time limit differ from ale-py's")
        if ours != theirs or not same_screen or not np.array_equal(bound.ram(), reference.getRAM()):
            raise RuntimeError(
                f"engine self-check: frame {frame}: reward, lives, end are {ours} but ale-py says {theirs}"
                + ("" if same_screen else "; the screens differ")
            )
    bound.restore(saved)
    if bound.save() != saved:
        raise RuntimeError("engine self-check: a restored state is not the one that was saved")
    if not bound.guard_intact():
        raise RuntimeError("engine self-check: the engine wrote outside its object")
