#!/bin/bash
# The GPU part of everything, in one go and under nine minutes: builds, checks GPU paths against the CPU's, times them
# beside Stable-Baselines3, and prints one table. With --learn MINUTES it trains instead, for as long as that says, and
# leaves curves and a checkpoint in files under 16 MB.
#
#   bench/gpu/run.sh [--out FOLDER] [--wheels FOLDER] [--learn MINUTES] [options of measure.py or learn.py beside this]
#
# Needs a CUDA torch in the python that it finds ($PYTHON, else python3), a C++ compiler and cmake. No network: what else
# is missing is taken from wheels in FOLDER (default .whl beside the tree; see bench/gpu/wheels.sh).
set -euo pipefail
tree=$(cd "$(dirname "$0")/../.." && pwd)
out=$tree/gpu-results wheels=$tree/.whl learn=
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --out | --wheels | --learn)
      if [ $# -lt 2 ]; then
        echo "run.sh: $1 is given without its value; --out and --wheels take a folder, --learn takes minutes" >&2
        exit 2
      fi
      ;;&
    --out) out=$2; shift 2 ;;
    --wheels) wheels=$2; shift 2 ;;
    --learn) learn=$2; shift 2 ;;
    *) arguments+=("$1"); shift ;;
  esac
done
mkdir -p "$out"
out=$(cd "$out" && pwd) # from here on the same folder wherever we are
wheels=$(realpath -m "$wheels")
python=$(command -v "${PYTHON:-python3}") || {
  echo "run.sh: ${PYTHON:-python3} is no program that is found; set PYTHON to a python that has torch" >&2
  exit 2
}
[[ $python == /* ]] || python=$PWD/$python
cd "$tree"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

# step NAME COMMAND...: what it says goes to a file; of it is shown what says why, if it fails.
step() {
  local name=$1 log=$out/setup.log code=0
  shift
  "$@" > "$log" 2>&1 || code=$?
  [ "$code" -ne 0 ] || return 0
  echo "run.sh: $name failed with exit code $code; the whole log is $log. Of it:" >&2
  { grep -n -i -E 'error|no module|not found|no such|cannot|could not|requires|fatal' "$log" || tail -n 20 "$log"; } \
    | tail -n 20 >&2
  exit "$code"
}

if compgen -G "$wheels/*.whl" > /dev/null; then
  # Into a folder of this run, which comes first on the path: nothing that is installed is touched, but where a package
  # is in both places the wheel's is taken.
  step "installing the wheels in $wheels" \
    "$python" -m pip install --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
fi
export PYTHONPATH=$site:$tree/bench${PYTHONPATH:+:$PYTHONPATH} PATH=$site/bin:$PATH PYTHONUNBUFFERED=1
step "looking for what building needs" "$python" "$tree/bench/gpu/needs.py"
step "building" \
  "$python" -m pip install -v --no-index --no-deps --no-build-isolation --no-cache-dir --target "$site" "$tree"
echo "built in $SECONDS s"

cd "$tree/bench/gpu" # so that the package that was installed is imported, and not the tree
if [ -n "$learn" ]; then
  command=("$python" learn.py --minutes "$learn" --out "$out")
else
  left=$((520 - SECONDS)) # of nine minutes, with something for starting and ending
  command=("$python" measure.py --minutes "$((left / 60)).$((left % 60 * 10 / 60))" --out "$out")
fi
# Not in the foreground, where this shell would hear of a signal only when the command is over; and no exec, which would
# leave the folder of this run behind.
"${command[@]}" ${arguments[@]+"${arguments[@]}"} &
running=$!
trap 'kill -TERM "$running" 2> /dev/null || true' TERM INT HUP
code=0
wait "$running" || code=$?
while kill -0 "$running" 2> /dev/null; do # a signal ended the wait, not the command
  code=0
  wait "$running" || code=$?
done
[ "$code" -eq 0 ] || echo "run.sh: $(basename "${command[1]}") ended with exit code $code; its files are in $out" >&2
exit "$code"
