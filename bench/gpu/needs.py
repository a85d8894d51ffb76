"""What building fastrl needs and this machine lacks, told before pip says it in many lines."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys

_LEAST_CMAKE = (3, 25)  # as pyproject.toml says
_MODULES = {"packaging": "packaging", "pathspec": "pathspec", "scikit_build_core": "scikit-build-core",
            "pybind11": "pybind11", "torch": "torch", "numpy": "numpy"}  # fmt: skip


def cmake_complaint() -> str | None:
    path = shutil.which("cmake")
    least = ".".join(map(str, _LEAST_CMAKE))
    remedy = "put a wheel of cmake into the folder of wheels (bench/gpu/wheels.sh fetches one)"
    if path is None:
        return f"error: cmake is not found, and at least {least} is needed; {remedy}"
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    if found is None or tuple(map(int, found.groups())) < _LEAST_CMAKE:
        version = found[0] if found else "one that tells no version"
        return f"error: cmake at {path} is {version}, and at least {least} is needed; {remedy}"
    return None


def complaints() -> list[str]:
    found = []
    for module, package in _MODULES.items():
        if importlib.util.find_spec(module) is None:
            remedy = "install it" if package in ("torch", "numpy") else "bench/gpu/wheels.sh fetches it"
            found.append(f"error: {package} is not found; {remedy}")
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in compilers if name):
        found.append("error: no C++ compiler is found as $CXX, c++, g++ or clang++; install g++")
    return found + [text for text in [cmake_complaint()] if text]


if __name__ == "__main__":
    told = complaints()
    print("\n".join(told))
    sys.exit(1 if told else 0)
