#!/usr/bin/env bash
# Runs a bundle with only the base install and the `cpu` extra, as on a device.
#
#   tests/run_without_torch.sh BUNDLE [PYTHON ...]
#
# PYTHON defaults to python3.11, and python3.10 (JetPack 6) if installed. BUILDER is a Python with
# `build` and `setuptools`, by default .venv/bin/python.
set -euo pipefail

if (($# == 0)); then
    echo "usage: $0 BUNDLE [PYTHON ...]" >&2
    exit 2
fi
bundle=$(realpath "$1")
shift
root=$(realpath "$(dirname "$0")/..")
builder=$(realpath --no-symlinks "${BUILDER:-$root/.venv/bin/python}")

pythons=("$@")
if ((${#pythons[@]} == 0)); then
    pythons=(python3.11)
    for candidate in python3.10 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.10.*/bin/python3.10; do
        # pyenv has shims, which fail, for versions that are not active
        if "$candidate" -c '' 2>/dev/null; then
            pythons+=("$candidate")
            break
        fi
    done
fi

temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
cd "$temp"  # so that no checkout is on the path

# the wheel is built from the source archive, so that a file missing there is noticed
if ! "$builder" -m build --no-isolation --outdir dist "$root" >build.log 2>&1; then
    cat build.log >&2
    exit 1
fi
wheel=$(echo dist/*.whl)

for python in "${pythons[@]}"; do
    echo "== $("$python" --version), base install and [cpu]"
    rm -rf venv
    "$python" -m venv venv
    venv/bin/python -m pip install --quiet "$wheel[cpu]"
    venv/bin/python - <<'PY'
from importlib.util import find_spec

found = [name for name in ("torch", "onnx", "onnxscript", "polygraphy") if find_spec(name)]
if found:
    raise SystemExit(f"error: the device install pulled in {', '.join(found)}")
PY
    venv/bin/mod-edge run "$bundle" --source "$root/tests/data/box.mp4" \
        --max-frames 20 --json >events.jsonl
    venv/bin/python - events.jsonl <<'PY'
import json
import sys

with open(sys.argv[1], encoding="utf-8") as lines:
    events = [json.loads(line) for line in lines]
if not events or events[-1]["event"] != "summary" or events[-1]["num_frames"] != 20:
    raise SystemExit("error: mod-edge run did not end with the summary of 20 frames")
PY
    venv/bin/mod-edge run "$bundle" --query "What is here?"
    venv/bin/mod-edge eval "$bundle" --text "$root/LICENSE"
    venv/bin/mod-edge inspect "$bundle"
    venv/bin/mod-edge doctor
done
