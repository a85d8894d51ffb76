#!/bin/bash
# Fetches the wheels that bench/gpu/run.sh needs on a machine without a network, where torch and numpy are there already.
#
#   bench/gpu/wheels.sh [FOLDER] [PYTHON_VERSION] [NAME ...]
#
# FOLDER (default .whl beside the tree) gets what building, running and the peers need, and what that needs in turn, in
# the versions of constraints.txt. NAMEs are further packages that the machine has. Everything is 151 MiB, of which
# OpenCV takes 58 and cmake 29; for a machine that has some of it, 44 MiB are left:
#
#   bench/gpu/wheels.sh .whl 3.12 opencv-python-headless cmake tensorboard
#
# Run it where pip reaches a package index.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/../.."
folder=.whl version=3.12
[ $# -lt 1 ] || { folder=$(cd "$here" && realpath -m "$1"); shift; }
[ $# -lt 1 ] || { version=$1; shift; }
if [[ ! $version =~ ^3\.[0-9]+$ ]]; then
  echo "wheels.sh: '$version' is no version of Python such as 3.12; give FOLDER, then the version, then NAMEs" >&2
  exit 2
fi
# What torch brings, and a desktop program beside mujoco that no module imports.
there=(torch numpy filelock fsspec jinja2 markupsafe mpmath networkx sympy typing-extensions mujoco-studio "$@")
platforms=()
for n in 39 35 34 31 28 27 24 17; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
mkdir -p "$folder"

# Names that what lies in the folder needs, and that are neither there nor in "$@"; with nothing in it, of the tree.
still_missing() {
  python3 - "$folder" "$version" "$@" <<'PYTHON'
import re
import sys
import tomllib
import zipfile
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

folder, version, *there = sys.argv[1:]
project = tomllib.loads(Path("pyproject.toml").read_text())
peers = ["stable-baselines3", "opencv-python-headless"]
wanted = project["project"]["dependencies"] + project["build-system"]["requires"] + ["cmake", "ninja", *peers]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


have = {plain(name) for name in there}
needs = {("", text) for text in wanted}
extras: dict[str, set[str]] = {}
metadata: dict[str, list[str]] = {}
for wheel in Path(folder).glob("*.whl"):
    name = plain(wheel.name.split("-")[0])
    with zipfile.ZipFile(wheel) as file:
        (path,) = (each for each in file.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", each))
        head = file.read(path).decode().split("\n\n")[0]
    metadata[name] = re.findall(r"^Requires-Dist: (.+)$", head, re.MULTILINE)
environment = {"python_version": version, "python_full_version": f"{version}.0"}
missing: set[str] = set()
seen: set[tuple[str, str]] = set()
while needs:
    extra, text = need = needs.pop()
    if need in seen:
        continue
    seen.add(need)
    found = Requirement(text)
    name = plain(found.name)
    if name in have or (found.marker and not found.marker.evaluate({**environment, "extra": extra})):
        continue
    if name not in metadata:
        missing.add(name)
    needs |= {(each, text) for each in ("", *found.extras) for text in metadata.get(name, [])}
print(*sorted(missing))
PYTHON
}

while names=$(still_missing "${there[@]}") && [ -n "$names" ]; do
  # shellcheck disable=SC2086 # names are words
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
    "${platforms[@]}" -c constraints.txt -d "$folder" $names
done
du -sh "$folder"
