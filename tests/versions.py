"""What figures were taken with."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform

from fastrl import build_info


def versions(*packages: str) -> dict[str, str]:
    """The date, these packages, and this one; no names of machines."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "?"
    info = build_info()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **found,
        "Python": platform.python_version(),
        "machine": platform.machine(),
        "fastrl": info["version"],
        "native sources": info["source_hash"],
        "compiler": info["compiler"],
        "cpu path": info["cpu_path"],
    }


def as_table(values: dict[str, str]) -> str:
    """In Markdown."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())])
