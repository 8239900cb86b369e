#!/usr/bin/env bash
# Runs a bundle, and the tests that need no PyTorch, with the lowest versions that pyproject.toml
# allows for the base install and the `cpu` extra.
#
#   tests/run_with_lowest_versions.sh BUNDLE [PYTHON]
#
# PYTHON defaults to python3.10 (JetPack 6) if installed, else to python3. UV is the command uv, by
# default .venv/bin/uv. The environment stays in build/lowest.
set -euo pipefail

if (($# == 0)); then
    echo "usage: $0 BUNDLE [PYTHON]" >&2
    exit 2
fi
bundle=$(realpath "$1")
root=$(realpath "$(dirname "$0")/..")
uv=$(realpath --no-symlinks "${UV:-$root/.venv/bin/uv}")

python=${2:-python3}
if (($# == 1)); then
    for candidate in python3.10 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.10.*/bin/python3.10; do
        # pyenv has shims, which fail, for versions that are not active
        if "$candidate" -c '' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
fi

cd "$root"
venv=build/lowest
mkdir -p build
"$uv" venv --quiet --clear --python "$(command -v "$python")" "$venv"
bin=$root/$venv/bin
"$uv" pip compile --quiet --resolution lowest-direct --extra cpu --python "$bin/python" \
    --output-file "$venv/lowest.txt" pyproject.toml
"$uv" pip install --quiet --python "$bin/python" -r "$venv/lowest.txt" pytest hypothesis
"$uv" pip install --quiet --python "$bin/python" --no-deps --editable .

echo "== $("$bin/python" --version) with the lowest versions of:"
"$uv" pip compile --quiet --resolution lowest-direct --extra cpu --python "$bin/python" \
    --no-deps --no-header --no-annotate pyproject.toml

temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
cd "$temp"
for command in run eval scenes doctor; do
    "$bin/mod-edge" "$command" --help >/dev/null
done
"$bin/mod-edge" doctor
"$bin/mod-edge" run "$bundle" --source "$root/tests/data/box.mp4" --max-frames 20 \
    --query "What is here?@3" --json >events.jsonl
tail -n 1 events.jsonl | grep --fixed-strings --quiet '"num_frames": 20'
"$bin/mod-edge" scenes scenes --train 0 --validation 0 --test 1 --combinations 0 --duration 8
"$bin/mod-edge" eval "$bundle" --data scenes

cd "$root"
"$bin/python" -m pytest -q -m "not gpu and not slow" -p no:cacheprovider \
    tests/native tests/doctor tests/commands/test_console.py tests/commands/test_stream_view.py
