"""The run on a GPU machine: its arguments, and the check of the graphs that ran."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "on_gpu.sh"


@pytest.mark.parametrize(
    "arguments",
    [[], ["."], ["--dry-run"], ["no-such-folder", "tiny", "9b"]],
    ids=["none", "existing", "dry", "unknown part"],
)
def test_it_wants_a_new_folder_and_parts_that_exist(arguments):
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "[--dry-run] FOLDER [PART...] (a new folder; parts: basics" in done.stderr


def test_a_weight_that_is_dequantized_before_its_product_is_named():
    onnx = pytest.importorskip("onnx")
    from benchmarks.saved_graphs import dequantized_products

    make = onnx.helper.make_node
    dequantize = make("DequantizeLinear", ["codes", "scale"], ["weight"], name="dequantize")
    product = make("MatMul", ["hidden", "weight"], ["query"], name="q_proj")
    other = make("MatMul", ["query", "key"], ["scores"], name="scores")
    graph = onnx.helper.make_graph([dequantize, product, other], "layer", [], [])
    assert dequantized_products(graph) == ["q_proj"]
    assert dequantized_products(onnx.helper.make_graph([other], "layer", [], [])) == []
