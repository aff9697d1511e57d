#!/usr/bin/env bash
# Goes from a fresh clone to a prediction in three commands. The last one runs in an environment
# with onnxruntime and numpy alone. Run with `make clone`.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { printf '%s\n' "clone: $*"; }

git clone --quiet "$checkout" "$work/clone"
cd "$work/clone"
export SFTSEARCH_CACHE="$work/cache" PYTHONPATH=''
unset SFTSEARCH_RUNS MAKEFLAGS MAKELEVEL

say 'make run'
make run > "$work/run.log" 2>&1 || { tail -40 "$work/run.log"; exit 1; }
grep 'configurations are on the front' "$work/run.log" > /dev/null || { tail -40 "$work/run.log"; exit 1; }

say 'sftsearch export stride --best --to onnx --out m'
.venv/bin/sftsearch export stride --best --to onnx --out m > "$work/export.log" ||
  { cat "$work/export.log"; exit 1; }

say 'python m/predict.py sample.npz'
python3 -m venv "$work/plain"
"$work/plain/bin/python" -m pip install --quiet --disable-pip-version-check \
  -c constraints.txt numpy onnxruntime
"$work/plain/bin/python" -c '
import importlib.util
for name in ("torch", "sftsearch", "onnx"):
    assert importlib.util.find_spec(name) is None, f"{name} is installed"'
"$work/plain/bin/python" m/predict.py sample.npz | tee "$work/predictions.txt"
grep -Pq '^0\t\w+ [01]\.\d{3}$' "$work/predictions.txt" || { say 'no prediction'; exit 1; }

say 'ok'
