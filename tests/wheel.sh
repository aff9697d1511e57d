#!/usr/bin/env bash
# Builds a source distribution and from it a wheel, installs the wheel outside of the checkout, and
# uses it there. Dependencies come from the environment of the tests. Run with `make wheel`.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
python=$checkout/.venv/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { printf '%s\n' "wheel: $*"; }

say 'building the source distribution, and the wheel from it'
# From a copy of the files in git, without stale build folders.
mkdir "$work/source"
git ls-files -z --cached --others --exclude-standard | xargs -0 -I{} sh -c \
  'test ! -f "$1" || cp --parents "$1" "$2"' _ {} "$work/source"
"$python" -m build --no-isolation --outdir "$work/dist" "$work/source" > "$work/build.log" 2>&1 ||
  { cat "$work/build.log"; exit 1; }
wheel=$(echo "$work"/dist/*.whl)

say "checking the content of $(basename "$wheel")"
"$python" - "$wheel" "$work/source" << 'PYTHON'
import sys
import zipfile
from pathlib import Path

wheel, source = zipfile.ZipFile(sys.argv[1]), Path(sys.argv[2])
names = {name for name in wheel.namelist() if not name.endswith("/")}
folders = ("datasets", "orchestrator", "search_spaces", "trainables")
api = "orchestrator/api/public/"  # installed as `sftsearch.api`
expected = {
    f"sftsearch/{str(path.relative_to(source)).replace(api, 'api/')}"
    for folder in folders
    for path in (source / folder).rglob("*")
    if path.is_file()
}
ours = {name for name in names if ".dist-info/" not in name}
assert ours == expected, f"missing {expected - ours}, unexpected {ours - expected}"
info = {name.split(".dist-info/")[1] for name in names - ours}
for name in ("licenses/LICENSE", "licenses/datasets/shipped/ATTRIBUTION.md", "entry_points.txt"):
    assert name in info, f"{name} is not in {sorted(info)}"
PYTHON

say 'installing it into a fresh environment'
"$python" -m venv --without-pip "$work/venv"
site=$("$work/venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')
"$python" -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check \
  --no-deps --no-index "$wheel"
# Append the dependencies to the path. The .pth files of that folder, and so the editable install of
# the checkout, are not read.
"$python" -c 'import site; print(site.getsitepackages()[0])' > "$site/dependencies.pth"

mkdir "$work/empty"
cd "$work/empty"
export PYTHONPATH='' SFTSEARCH_CACHE="$work/cache"
unset SFTSEARCH_RUNS

say 'importing every installed module'
"$work/venv/bin/python" -W error::ImportWarning - "$checkout" << 'PYTHON'
import importlib
import pkgutil
import sys
from pathlib import Path

import sftsearch

checkout = Path(sys.argv[1])
modules = [found.name for found in pkgutil.walk_packages(sftsearch.__path__, "sftsearch.")]
# `sftsearch.datasets` has no __init__.py, so the walk does not enter it.
folder = Path(next(iter(sftsearch.__path__))) / "datasets"
modules += [f"sftsearch.datasets.{path.stem}" for path in folder.glob("*.py")]
assert len(modules) > 40, modules
assert "sftsearch.api" in modules, "the Python API has no short name"
for name in modules:
    module = importlib.import_module(name)
    path = Path(module.__file__ or next(iter(module.__path__)))
    assert not path.is_relative_to(checkout) or ".venv" in path.parts, f"{name} is {path}"
    assert path.is_relative_to(sys.prefix), f"{name} is {path}"
assert "datasets" not in sys.modules, "the bare name `datasets` was imported"
PYTHON

say 'checking that `import datasets` finds Hugging Face, also in the checkout'
mkdir "$work/huggingface"
mkdir "$work/huggingface/datasets"
echo 'OWNER = "Hugging Face"' > "$work/huggingface/datasets/__init__.py"
for folder in "$work/empty" "$checkout"; do
  (cd "$folder" && PYTHONPATH="$work/huggingface" "$work/venv/bin/python" -c \
    'import datasets, sftsearch.datasets.catalog; assert datasets.OWNER == "Hugging Face"')
  # As Ray does in its workers: the driver's folder first.
  (cd "$folder" && "$work/venv/bin/python" -c \
    "import sys; sys.path[:] = [sys.path[0] or '.', *sys.path[1:], '$work/huggingface']
import datasets; assert datasets.OWNER == 'Hugging Face'")
done

# output_has WORDS ARGUMENT... fails unless the command's output has the words.
output_has() {
  local words=$1
  shift
  "$work/venv/bin/sftsearch" "$@" > "$work/output.txt"
  grep -q -- "$words" "$work/output.txt" || { say "no '$words' in the output of: sftsearch $*"; exit 1; }
}

say 'using the command'
output_has 'sftsearch check' --help
output_has "$(basename "$wheel" | cut -d- -f2)" --version
output_has '^sft ' models
output_has 'CC BY 4.0' data info wearables
output_has 'is valid' check stride
output_has 'stride=128' price stride_paper --no-time
output_has 'No studies' list
output_has 'StudyFile' schema
test -z "$(ls)" || { say "a command left $(ls) in the current folder"; exit 1; }

say 'ok'
