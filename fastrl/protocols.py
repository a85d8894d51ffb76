"""Show the Atari protocols: all of them, one, or what two of them disagree on."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from fastrl._command import run
from fastrl.engine.protocol import ALIASES, PROTOCOLS, Protocol, differences, protocol


def table(columns: list[Protocol], fields: list[str]) -> str:
    """A plain text table, a row a field."""
    rows = [["", *(p.name for p in columns)]]
    rows += [[field, *(str(getattr(p, field)) for p in columns)] for field in fields]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def describe(names: list[str]) -> str:
    """What ``fastrl protocols NAMES`` prints."""
    chosen = [protocol(name) for name in names] or list(PROTOCOLS.values())
    fields = [f.name for f in dataclasses.fields(Protocol) if f.name not in ("name", "reference")]
    if len(chosen) == 2:
        fields = list(differences(*chosen))
        if not fields:
            return f"{names[0]} and {names[1]} are the same rules"
    lines = [table(chosen, fields), ""]
    lines += [f"{p.name}: {p.reference} (fingerprint {p.fingerprint()})" for p in chosen]
    if not names:
        lines += [f"{alias}: another name of {name}" for alias, name in ALIASES.items()]
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="fastrl protocols", description=__doc__)
    parser.add_argument("names", nargs="*", help="one protocol to show, two to compare; none: all")
    try:
        print(describe(parser.parse_args().names))
    except ValueError as error:
        sys.exit(f"fastrl protocols: {error}")


if __name__ == "__main__":
    run(main)
