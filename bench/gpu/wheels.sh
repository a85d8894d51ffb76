#!/bin/bash
# Fetches the wheels that bench/gpu/run.sh needs on a machine without a network: bench/gpu/wheels.sh FOLDER [PYTHON_VERSION]
# Run it where pip reaches a package index. torch and numpy are expected there already.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-.whl} version=${2:-3.12}
platforms=()
for n in 39 35 34 31 28 27 24 17; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
mkdir -p "$folder"
names=(
  ale-py gymnasium cloudpickle farama-notifications mujoco safetensors tyro typeguard docstring-parser rich markdown-it-py
  mdurl pygments pybind11 scikit-build-core pathspec ninja stable-baselines3
)
for name in "${names[@]}"; do
  pinned=$(grep -i "^${name}==" constraints.txt || echo "$name")
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
    "${platforms[@]}" -d "$folder" "$pinned"
done
du -sh "$folder"
