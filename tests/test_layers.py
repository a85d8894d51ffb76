"""The rules of the house: who may know whom. A rule that is not checked is a wish."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fastrl.engine import mujoco_library, native

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "fastrl"
ALGORITHMS = {"dqn", "a3c", "async_q", "vpg", "ddpg"}

# What each folder of csrc may include of the others: data moves one way.
MAY_INCLUDE = {
    "atari": {"atari"},
    "mujoco": {"mujoco"},
    "pool": {"atari", "mujoco", "pool"},
    "replay": {"replay", "pool"},
}


def commands() -> set[str]:
    return {f.stem for f in PACKAGE.glob("*.py") if not f.stem.startswith("_")} - ALGORITHMS


def imports_of(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def lines_with(pattern: str, files: list[Path]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(pattern, line)
    ]


@pytest.mark.parametrize("supported", [native.SUPPORTED_ALE_PY, mujoco_library.SUPPORTED_MUJOCO])
def test_ranges_of_bound_libraries_are_stated_alike(supported: str) -> None:
    with open(ROOT / "pyproject.toml", "rb") as file:
        dependencies = tomllib.load(file)["project"]["dependencies"]

    assert supported.replace(" ", "") in [d.replace(" ", "") for d in dependencies]


def test_memory_orders_are_named_only_in_lane_hpp() -> None:
    files = [f for f in CSRC.rglob("*.[ch]pp") if f.name != "lane.hpp"]

    assert lines_with(r"memory_order|atomic_thread_fence", files) == []


def test_pybind11_is_known_only_to_the_bindings() -> None:
    files = [f for f in CSRC.rglob("*.[ch]pp") if f.parent != CSRC / "bindings"]

    assert lines_with(r"pybind11|Python\.h", files) == []


def test_symbols_are_looked_up_only_in_the_two_files_that_bind_a_library() -> None:
    binds = {CSRC / "atari" / "engine.cpp": r"mj_", CSRC / "mujoco" / "library.cpp": r"_ZN"}
    others = [f for f in CSRC.rglob("*.[ch]pp") if f not in binds]

    assert lines_with(r"_ZN|dlsym|dlopen|\"mj_", others) == []
    for file, the_others_names in binds.items():
        assert lines_with(the_others_names, [file]) == []


def test_native_parts_include_only_what_lies_to_their_left() -> None:
    wrong = []
    for file in CSRC.rglob("*.[ch]pp"):
        folder = file.relative_to(CSRC).parts[0]
        for included in re.findall(r'#include "(\w+)/', file.read_text()):
            if folder in MAY_INCLUDE and included not in MAY_INCLUDE[folder]:
                wrong.append(f"{file.relative_to(ROOT)} includes {included}/")

    assert wrong == []


def test_the_native_module_is_imported_only_by_engine() -> None:
    wrong = [
        str(file.relative_to(ROOT))
        for file in PACKAGE.rglob("*.py")
        if file.parent.name != "engine" and any("_core" in name.split(".") for name in imports_of(file))
    ]

    assert wrong == []


def test_algorithms_import_neither_each_other_nor_a_command() -> None:
    forbidden = {f"fastrl.{name}" for name in ALGORITHMS | commands()}
    wrong = {
        file.name: sorted(imports_of(file) & forbidden - {f"fastrl.{file.stem}"})
        for file in PACKAGE.glob("*.py")
        if file.stem in ALGORITHMS and imports_of(file) & forbidden - {f"fastrl.{file.stem}"}
    }

    assert wrong == {}


def test_what_can_be_run_is_run_in_one_way() -> None:
    wrong = [
        name
        for name in sorted(commands() | {f.stem for f in PACKAGE.glob("*.py")} & ALGORITHMS)
        if '\nif __name__ == "__main__":\n    run(main)\n' not in (PACKAGE / f"{name}.py").read_text()
    ]

    assert wrong == []  # see _command.py


def test_importing_fastrl_imports_neither_torch_nor_mujoco() -> None:
    heavy = ("torch", "mujoco", "matplotlib", "cv2", "tyro", "rich", "tensorboard")
    code = f"import sys, fastrl; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")

    assert result.stdout.strip() == "[]"


def test_the_stub_names_what_the_module_has() -> None:
    stub = ast.parse((PACKAGE / "_core.pyi").read_text())
    declared: dict[str, set[str]] = {}
    for node in stub.body:
        if isinstance(node, ast.ClassDef):
            declared[node.name] = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            declared[node.name] = set()
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id[0] != "_":
            declared[node.target.id] = set()
    real: dict[str, set[str]] = {}
    for name, value in vars(native.core).items():
        if not name.startswith("_"):
            members = vars(value) if inspect.isclass(value) else {}
            real[name] = {m for m in members if not m.startswith("_") or m in ("__init__", "__len__")}
    for name, members in real.items():
        if "__init__" in members and "__init__" not in declared.get(name, set()):
            members.discard("__init__")  # classes that Python cannot construct inherit pybind's

    assert declared == real


@pytest.mark.parametrize("file", sorted(CSRC.rglob("*.hpp")), ids=lambda f: f.name)
def test_headers_stay_short_enough_to_read(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 240


def test_nothing_in_the_tree_names_the_machine_it_was_written_on() -> None:
    files = [
        f
        for f in ROOT.rglob("*")
        if f.is_file()
        and f.suffix in {".py", ".md", ".txt", ".toml", ".cpp", ".hpp", ".json", ".sh", ".yaml", ".pyi"}
        and not {".git", "build", ".venv", "node_modules"} & set(f.relative_to(ROOT).parts)
        and not any(part.startswith(".venv") for part in f.relative_to(ROOT).parts)
        and f != Path(__file__)
    ]

    # Where people and machines keep their checkouts; nothing that a user installs lies there.
    assert lines_with(r"/(?:work|root|home/\w+)/", files) == []
