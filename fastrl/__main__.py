"""``fastrl <command>`` is ``python -m fastrl.<command>``: whatever can be run lies directly in this package."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

from fastrl._command import run
from fastrl.engine.games import nearest


def commands() -> dict[str, str]:
    """Every command and the first line of what it says about itself, without importing any."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if not file.stem.startswith("_"):
            description = ast.get_docstring(ast.parse(file.read_text())) or ""
            found[file.stem] = description.splitlines()[0] if description else ""
    return found


def main() -> None:
    """What ``fastrl`` runs."""
    run(named_command)


def named_command() -> None:
    """Run the named command with the rest of the command line."""
    known = commands()
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print("usage: fastrl <command> [options]      (fastrl <command> --help says more)\n")
        for name, description in known.items():
            print(f"  {name:<12} {description}")
        return
    name = sys.argv[1]
    if name not in known:
        sys.exit(f"fastrl: '{name}' is not a command{nearest(name, list(known))}; known: {', '.join(known)}")
    sys.argv = [f"fastrl {name}", *sys.argv[2:]]
    # Imported, not run as __main__: types are looked up, and worker processes started, by the names of their modules.
    importlib.import_module(f"fastrl.{name}").main()


if __name__ == "__main__":
    main()
