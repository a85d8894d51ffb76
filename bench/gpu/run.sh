#!/bin/bash
# The GPU part of everything, in one go: builds, checks GPU paths against the CPU's, times them beside Stable-Baselines3,
# and prints one table. With --learn MINUTES it trains instead and leaves curves and a checkpoint in files under 16 MB.
#
#   bench/gpu/run.sh [--out FOLDER] [--wheels FOLDER] [--learn MINUTES] [options of bench/gpu/measure.py]
#
# Needs a CUDA torch in the python that it finds, a C++ compiler and cmake. No network: what else is missing is taken
# from wheels in FOLDER (default .whl beside the tree; see bench/gpu/wheels.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."
out=gpu-results wheels=.whl learn=
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --out) out=$2; shift 2 ;;
    --wheels) wheels=$2; shift 2 ;;
    --learn) learn=$2; shift 2 ;;
    *) arguments+=("$1"); shift ;;
  esac
done
mkdir -p "$out"
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if compgen -G "$wheels/*.whl" > /dev/null; then
  # torch and what is installed stay as they are: wheels only add to them.
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
fi
export PYTHONPATH=$site:$PWD/bench${PYTHONPATH:+:$PYTHONPATH} PATH=$site/bin:$PATH PYTHONUNBUFFERED=1
began=$SECONDS
"$python" -m pip install -q --no-index --no-deps --no-build-isolation --no-cache-dir --target "$site" . \
  2>&1 | tee "$out/build.log" | tail -5
echo "built in $((SECONDS - began)) s"
cd bench/gpu # so that the package that was installed is imported, and not the tree
if [ -n "$learn" ]; then
  exec "$python" learn.py --minutes "$learn" --out "../../$out" ${arguments[@]+"${arguments[@]}"}
fi
exec "$python" measure.py --out "../../$out" ${arguments[@]+"${arguments[@]}"}
