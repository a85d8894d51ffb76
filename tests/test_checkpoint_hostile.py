"""Loading a run that somebody else made runs none of their code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from nursery import Nursery

PACKAGE = Path(__file__).parents[1] / "fastrl"
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "yaml",
    "code",
    "codeop",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
MEMBERS = {"torch.load", "torch.jit.load", "torch.package", "np.load", "numpy.load", "os.system", "builtins.exec"}


def dangers(source: str) -> list[str]:
    """What could run code that lies in a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Name) and node.id in BUILTINS:
            found.append(node.id)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in MEMBERS:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.keyword) and (node.arg == "allow_pickle" or node.arg == "weights_only"):
            found.append(str(node.arg))
    return found


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_nothing_in_the_package_can_run_what_it_loads(file: Path) -> None:
    assert dangers(file.read_text()) == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "import yaml", "torch.load(f)", "x = eval", "np.load(f)", "exec('')"],
)
def test_the_check_sees_what_it_is_to_see(source: str) -> None:
    assert dangers(source)


def test_hostile_files_run_nothing_and_reach_nothing(tmp_path: Path, session_seed: int) -> None:
    nursery = Nursery()
    try:
        (tmp_path / "runs").mkdir()
        child = nursery.start("hostile:attacked", str(tmp_path / "runs"), 1000, session_seed, output=tmp_path / "log")
        code, said = child.wait(120), child.said()
    finally:
        nursery.close()
    print(said.splitlines()[-1])
    assert code == 0, said[-3000:]
    assert said.count("EXECUTED") == 1  # by the control, at the end
