"""A missing, stale or unfit native part is explained at import, with the command that mends it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastrl
from fastrl.engine import native

INSTALLED = Path(fastrl.__file__).parent
ROOT = Path(__file__).parents[1]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package as it lies in a source tree."""
    shutil.copytree(INSTALLED, tmp_path / "fastrl", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def import_from(*places: Path) -> str:
    code = "import fastrl; print(fastrl.__version__, fastrl.build_info()['compiler'])"
    tree = places[0]
    environment = {"PYTHONPATH": os.pathsep.join(map(str, places)), "PATH": "/usr/bin:/bin"}
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, cwd=tree, env=environment
    )
    return run.stdout + run.stderr


def test_a_copy_imports(tree: Path) -> None:
    assert "Error" not in import_from(tree)


def test_a_missing_extension_names_the_command(tree: Path) -> None:
    for file in (tree / "fastrl").glob("_core*.so"):
        file.unlink()

    said = import_from(tree)
    assert "fastrl's native part is missing or does not load" in said
    assert "pip install ." in said


def test_in_the_source_tree_the_installed_extension_is_found(tree: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site" / "fastrl"
    installed.mkdir(parents=True)
    for file in (tree / "fastrl").glob("_core*.so"):
        shutil.move(file, installed / file.name)
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    (tree / "CMakeLists.txt").touch()

    assert "Error" not in import_from(tree, tmp_path / "site")
    (tree / "csrc" / "changed.cpp").write_text("int changed;")
    assert "older than the C++ sources" in import_from(tree, tmp_path / "site")


def test_an_extension_that_does_not_load_says_why(tree: Path) -> None:
    for file in (tree / "fastrl").glob("_core*.so"):
        file.write_bytes(b"not a library")

    said = import_from(tree)
    assert "missing or does not load" in said
    assert "pip install ." in said


def test_an_extension_older_than_its_sources_is_refused(tree: Path) -> None:
    (tree / "csrc").mkdir()
    (tree / "CMakeLists.txt").touch()
    (tree / "csrc" / "changed.cpp").write_text("int changed;")

    said = import_from(tree)
    assert "older than the C++ sources" in said
    assert "pip install -e ." in said


def test_an_extension_of_another_version_is_refused(tree: Path) -> None:
    metadata = tree / "fastrl-99.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fastrl\nVersion: 99.0\n")

    said = import_from(tree)
    assert f"compiled for version {native.core.version}, the Python part is 99.0" in said


def test_the_hash_of_sources_follows_every_byte(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.cpp").write_text("1")
    (tmp_path / "y.hpp").write_text("2")
    first = native.source_hash(tmp_path)
    (tmp_path / "y.hpp").write_text("3")

    assert native.source_hash(tmp_path) != first


def test_build_info_says_how_it_was_built() -> None:
    info = fastrl.build_info()

    assert info["compiler"].split()[0] in ("GNU", "Clang", "AppleClang")
    assert "-ffp-contract=off" in info["compile_flags"]
    assert info["cpu_path"] == info["cpu_paths"][-1]
    assert info["cpu_paths"][0] == "portable"
    assert info["ale_py"].startswith("0.12")
