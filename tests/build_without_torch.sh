#!/usr/bin/env bash
# Builds a bundle's engines with only the base install and the `rtx` extra.
#
#   tests/build_without_torch.sh BUNDLE [PYTHON]
#
# BUNDLE is for target rtx and is not changed. BUILDER is a Python with `build` and `setuptools`, by
# default .venv/bin/python.
set -euo pipefail

if (($# == 0)); then
    echo "usage: $0 BUNDLE [PYTHON]" >&2
    exit 2
fi
bundle=$(realpath "$1")
python=${2:-python3.11}
root=$(realpath "$(dirname "$0")/..")
builder=$(realpath --no-symlinks "${BUILDER:-$root/.venv/bin/python}")

temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
cd "$temp"  # so that no checkout is on the path

if ! "$builder" -m build --no-isolation --outdir dist "$root" >build.log 2>&1; then
    cat build.log >&2
    exit 1
fi
"$python" -m venv venv
venv/bin/python -m pip install --quiet "$(echo dist/*.whl)[rtx]"
venv/bin/python - <<'PY'
from importlib.util import find_spec

names = ("torch", "onnx", "onnxscript", "onnxruntime", "polygraphy")
found = [name for name in names if find_spec(name)]
if found:
    raise SystemExit(f"error: the base install with [rtx] pulled in {', '.join(found)}")
PY
cp -r "$bundle" bundle
rm -rf bundle/engines
venv/bin/mod-edge build bundle --profile rtx-ada --compute-capability 8.9
venv/bin/mod-edge build bundle --profile rtx-ada --compute-capability 8.9 | grep "^0 built"
