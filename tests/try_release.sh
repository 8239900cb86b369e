#!/usr/bin/env bash
# Builds the wheel and the source archive, installs each in a fresh environment and streams a bundle.
#
#   tests/try_release.sh BUNDLE
#
# The archives stay in dist/. BUILDER is a Python with `build` and `setuptools`, by default
# .venv/bin/python.
set -euo pipefail

if (($# != 1)); then
    echo "usage: $0 BUNDLE" >&2
    exit 2
fi
bundle=$(realpath "$1")
root=$(realpath "$(dirname "$0")/..")
builder=$(realpath --no-symlinks "${BUILDER:-$root/.venv/bin/python}")

temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
rm -rf "$root/dist"
cd "$temp"  # so that no checkout is on the path

# the wheel is built from the source archive, so that a file missing there is noticed
if ! "$builder" -m build --no-isolation --outdir "$root/dist" "$root" >build.log 2>&1; then
    cat build.log >&2
    exit 1
fi

for archive in "$root"/dist/*.whl "$root"/dist/*.tar.gz; do
    echo "== $(basename "$archive"), $(du -k "$archive" | cut -f1) kB"
    rm -rf venv
    "$builder" -m venv venv
    venv/bin/python -m pip install --quiet "$archive"
    venv/bin/mod-edge --version
    venv/bin/mod-edge --help >/dev/null

    # a missing package is named, with a command that installs it from this archive
    if venv/bin/mod-edge run "$bundle" --source "$root/tests/data/box.mp4" 2>hint.txt; then
        echo "error: mod-edge run succeeded without onnxruntime, wanted a hint to install it" >&2
        exit 1
    fi
    grep --fixed-strings "pip install \"$archive[cpu]\"" hint.txt
    venv/bin/python -m pip install --quiet "$archive[cpu]"

    venv/bin/mod-edge doctor --json | venv/bin/python -m json.tool >/dev/null
    venv/bin/mod-edge run "$bundle" --source "$root/tests/data/box.mp4" \
        --max-frames 20 --json >events.jsonl
    tail -n 1 events.jsonl | grep --fixed-strings --quiet '"num_frames": 20'
    echo "20 frames streamed"
done
