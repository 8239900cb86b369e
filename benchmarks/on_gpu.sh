#!/usr/bin/env bash
# Measures everything that needs an NVIDIA GPU, in one run. docs/gpu.md says what it shows.
#
#   benchmarks/on_gpu.sh [--dry-run] FOLDER
#
# Writes a log of every stage, the JSON documents and results.txt into FOLDER, which must not exist.
# A stage that fails does not stop the others; the exit code is 1 if one has failed. --dry-run goes
# through all stages with the tiny preset and without a GPU.
#
# PYTHON is the Python with mod-edge, by default python3. LAYERS_8B are the decoder layers of the 8b
# geometry that are measured, by default 8.
set -uo pipefail

preset=1b layers_8b=${LAYERS_8B:-8} window=4096 seconds=30 past=4000 gpu_tests=(-q)
device=cuda dtype=float16
if [[ ${1:-} == --dry-run ]]; then
    shift
    preset=tiny layers_8b=0 window=400 seconds=1 past=300 gpu_tests=(-q --collect-only)
    device=cpu dtype=float32
fi
if (($# != 1)) || [[ -e $1 ]]; then
    echo "usage: $0 [--dry-run] FOLDER (a new folder)" >&2
    exit 2
fi
python=$(command -v "${PYTHON:-python3}") || { echo "error: no ${PYTHON:-python3}" >&2; exit 2; }
root=$(realpath "$(dirname "$0")/..")
mkdir -p "$1" && out=$(realpath "$1")
work=$(mktemp -d)  # checkpoints and bundles: 20 GB
trap 'rm -rf "$work"' EXIT
cd "$root" || exit 2
# Installed packages first: without `pip install -e`, the checkout's mod_edge is only a part.
export PYTHONSAFEPATH=1 PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$root" NO_COLOR=1
failed=0

# stage NAME COMMAND...: its output goes to NAME.txt, its result to results.txt.
stage() {
    local name=$1 code=0 started=$SECONDS
    shift
    "$@" >"$out/$name.txt" 2>&1 || code=$?
    ((code == 0)) || failed=1
    printf '%-28s %s\n' "$name" "exit $code, $((SECONDS - started)) s" | tee -a "$out/results.txt"
}

# answer NAME COMMAND...: a stage whose refusal is a result, too.
answer() {
    local before=$failed
    stage "$@"
    failed=$before
}

mod_edge() { "$python" -m mod_edge "$@"; }

# document NAME COMMAND...: mod-edge COMMAND --json; the document goes to NAME.json.
document() {
    local name=$1
    shift
    mod_edge "$@" --json >"$out/$name.json"
}

export_cuda() { # CHECKPOINT BUNDLE PRECISION WEIGHTS
    mod_edge export "$1" -o "$2" --profile rtx-ada --target cuda --precision "$3" \
        --weights "$4" --window "$window"
}

shallow_8b() { # FOLDER
    mkdir "$1"
    "$python" - "$1" "$layers_8b" <<'PY'
import sys
from dataclasses import replace
from pathlib import Path

from mod_edge.model.presets import preset_config, write_random_checkpoint

config = preset_config("8b")
text = replace(config.text_config, num_hidden_layers=int(sys.argv[2]))
write_random_checkpoint(replace(config, text_config=text), Path(sys.argv[1]), seed=0)
PY
}

# measure NAME CHECKPOINT: bench in fp16 and int4, the graphs that ran, and PyTorch beside them.
measure() {
    local weights
    for weights in as-dtype int4; do
        stage "$1-$weights-export" export_cuda "$2" "$work/$1-$weights" fp16 $weights
        stage "$1-$weights-graphs" "$python" -m benchmarks.saved_graphs "$work/$1-$weights" \
            "$work/$1-$weights-graphs"
        stage "$1-$weights-bench" document "$1-$weights-bench" bench "$work/$1-$weights" \
            --device $device --seconds $seconds
        rm -rf "$work/$1-$weights"*
    done
    stage "$1-torch" "$python" -m benchmarks.torch_step "$2" --dtype $dtype --past $past
}

stage doctor document doctor doctor
answer nvidia-smi nvidia-smi
stage gpu-tests "$python" -m pytest tests -m gpu "${gpu_tests[@]}"

stage tiny mod_edge init tiny "$work/tiny"
for form in fp32:as-dtype fp16:as-dtype fp16:int4; do
    name=tiny-${form/:/-} bundle=$work/tiny-${form/:/-}
    stage "$name-export" export_cuda "$work/tiny" "$bundle" "${form%:*}" "${form#*:}"
    stage "$name-graphs" "$python" -m benchmarks.saved_graphs "$bundle" "$out/$name-graphs"
    stage "$name-verify" document "$name-verify" verify "$bundle" --checkpoint "$work/tiny"
    stage "$name-run" document "$name-run" run "$bundle" --device $device --max-frames 30 \
        --source tests/data/box.mp4 --query "Please narrate the video in real time."
done

stage "$preset-init" mod_edge init "$preset" "$work/$preset-checkpoint"
measure "$preset" "$work/$preset-checkpoint"

# TensorRT-RTX has not compiled for every chip: what it answers here is the result.
capability=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))' \
    2>/dev/null) || capability=8.9
answer rtx-export mod_edge export "$work/tiny" -o "$work/rtx" --profile rtx-ada --target rtx \
    --precision fp16 --window "$window"
answer rtx-build mod_edge build "$work/rtx" --profile rtx-ada --compute-capability "$capability"
answer rtx-bench document rtx-bench bench "$work/rtx" --backend tensorrt --seconds $seconds

if ((layers_8b)); then
    rm -rf "$work/$preset-checkpoint"
    stage 8b-init shallow_8b "$work/8b-checkpoint"
    measure "8b-$layers_8b-layers" "$work/8b-checkpoint"
fi
exit $failed
