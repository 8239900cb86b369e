#!/usr/bin/env bash
# Measures everything that needs an NVIDIA GPU, in one run. docs/gpu.md says what it shows.
#
#   benchmarks/on_gpu.sh [--dry-run] FOLDER [PART...]
#
# Writes a log of every stage, the JSON documents and results.txt into FOLDER, which must not exist.
# PARTs are basics, tiny, 1b, rtx, torch and 8b; all by default. A stage that fails does not stop the
# others; the exit code is 1 if one has failed. --dry-run goes through all stages with the tiny preset
# and without a GPU.
#
# PYTHON is the Python with mod-edge, by default python3. LAYERS_8B are the decoder layers of the 8b
# geometry that are measured, by default 8. BENCH_S are the seconds of each bench, by default 30.
set -uo pipefail

preset=1b layers_8b=${LAYERS_8B:-8} window=4096 seconds=${BENCH_S:-30} past=4000 gpu_tests=(-q)
device=cuda dtype=float16
if [[ ${1:-} == --dry-run ]]; then
    shift
    preset=tiny layers_8b=0 window=400 seconds=1 past=300 gpu_tests=(-q --collect-only)
    device=cpu dtype=float32
fi
all_parts="basics tiny 1b rtx torch 8b"
usage() {
    echo "usage: $0 [--dry-run] FOLDER [PART...] (a new folder; parts: $all_parts)" >&2
    exit 2
}
if (($# < 1)) || [[ -e $1 ]]; then
    usage
fi
folder=$1
shift
for part in "$@"; do
    [[ " $all_parts " == *" $part "* ]] || usage
done
parts=" ${*:-$all_parts} "
python=$(command -v "${PYTHON:-python3}") || { echo "error: no ${PYTHON:-python3}" >&2; exit 2; }
root=$(realpath "$(dirname "$0")/..")
mkdir -p "$folder" && out=$(realpath "$folder")
work=$(mktemp -d)  # checkpoints and bundles: 20 GB
trap 'rm -rf "$work"' EXIT
cd "$root" || exit 2
# Installed packages first: without `pip install -e`, the checkout's mod_edge is only a part.
export PYTHONSAFEPATH=1 PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$root" NO_COLOR=1

wants() { [[ $parts == *" $1 "* ]]; }

# stage NAME COMMAND...: its output goes to NAME.txt, its result to results.txt.
stage() {
    local name=$1 code=0 started=$SECONDS
    shift
    "$@" >"$out/$name.txt" 2>&1 || code=$?
    ((code == 0)) || touch "$work/failed"
    printf '%-28s %s\n' "$name" "exit $code, $((SECONDS - started)) s" | tee -a "$out/results.txt"
}

# answer NAME COMMAND...: a stage whose refusal is a result, too.
answer() {
    local before=0
    [[ -e $work/failed ]] && before=1
    stage "$@"
    ((before)) || rm -f "$work/failed"
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

random_checkpoint() { # FOLDER PRESET LAYERS (0: all)
    mkdir "$1"
    "$python" - "$@" <<'PY'
import sys
from dataclasses import replace
from pathlib import Path

from mod_edge.model.presets import preset_config, write_random_checkpoint

folder, preset, layers = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = preset_config(preset)
text = config.text_config
if layers:
    config = replace(config, text_config=replace(text, num_hidden_layers=layers))
write_random_checkpoint(config, Path(folder), seed=0)
PY
}

# measure NAME PRESET LAYERS: bench in fp16 and with int4 weights, each beside full computation.
# The exports run side by side, the benches one after the other.
measure() {
    local form base=$work/measured-$1
    stage "$1-init" random_checkpoint "$base" "$2" "$3"
    stage "$1-fp16-export" export_cuda "$base" "$base-fp16" fp16 as-dtype &
    stage "$1-int4-export" export_cuda "$base" "$base-int4" fp16 int4 &
    wait
    for form in fp16 int4; do
        stage "$1-$form-bench" document "$1-$form-bench" bench "$base-$form" \
            --device $device --seconds "$seconds"
        stage "$1-$form-graphs" "$python" -m benchmarks.saved_graphs "$base-$form" \
            "$base-$form-graphs"
    done
    rm -rf "$base-"*  # the checkpoint stays, for PyTorch's steps
}

# tiny_form PRECISION WEIGHTS: every graph and a stream compared with PyTorch, and a video streamed.
tiny_form() {
    local name=tiny-$1-$2
    stage "$name-export" export_cuda "$work/tiny" "$work/$name" "$1" "$2"
    stage "$name-graphs" "$python" -m benchmarks.saved_graphs "$work/$name" "$out/$name-graphs"
    stage "$name-verify" document "$name-verify" verify "$work/$name" --checkpoint "$work/tiny"
    stage "$name-run" document "$name-run" run "$work/$name" --device $device --max-frames 30 \
        --source tests/data/box.mp4 --query "Please narrate the video in real time."
}

if wants basics; then
    stage doctor document doctor doctor
    answer nvidia-smi nvidia-smi
    stage ceilings "$python" -m benchmarks.gpu_ceilings
    stage gpu-tests "$python" -m pytest tests -m gpu "${gpu_tests[@]}"
fi
if wants tiny || wants rtx; then
    stage tiny mod_edge init tiny "$work/tiny"
fi
if wants tiny; then
    tiny_form fp32 as-dtype &
    tiny_form fp16 as-dtype &
    tiny_form fp16 int4 &
    wait
fi
if wants 1b; then
    measure "$preset" "$preset" 0
fi
if wants rtx; then
    # TensorRT-RTX has not compiled for every chip: what it answers here is the result.
    capability=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))' \
        2>/dev/null) || capability=8.9
    answer rtx-export mod_edge export "$work/tiny" -o "$work/rtx" --profile rtx-ada --target rtx \
        --precision fp16 --window "$window"
    answer rtx-build mod_edge build "$work/rtx" --profile rtx-ada --compute-capability "$capability"
    answer rtx-bench document rtx-bench bench "$work/rtx" --backend tensorrt --seconds "$seconds"
fi
if wants torch; then
    checkpoint=$work/measured-$preset
    [[ -d $checkpoint ]] || stage "$preset-init" random_checkpoint "$checkpoint" "$preset" 0
    stage "$preset-torch" "$python" -m benchmarks.torch_step "$checkpoint" --dtype $dtype --past $past
fi
if wants 8b && ((layers_8b)); then
    rm -rf "$work/measured-$preset"
    measure "8b-$layers_8b-layers" 8b "$layers_8b"
fi
[[ ! -e $work/failed ]]
