"""Faults that quantized graphs have had: `mod-edge verify` finds each of them.

Every fault is planted in one layer of the tiny preset, whose healthy graph passes on the same steps
(`test_quantized`).
Largest error, and largest mean error of an output over all steps: healthy at most 1e-6 and 1e-7 in
float32, one activation scale a tensor 0.04 and 4e-3, a scale along the wrong axis 0.4 and 0.03, a
block off by one 0.9 and 0.1, a zero point of 0 1.8 and 0.3, a column sum left out 48 and 5. A
quantized router gives 0.02 and 2e-4, less than rounding may: it is found in the graph's ops.
"""

from dataclasses import replace

import pytest

from mod_edge.export.bundle_writer import graph_weights
from mod_edge.export.quantize import quantize_graph
from mod_edge.export.quantized_ops import OPS
from mod_edge.export.trace import write_graph
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.presets import preset_config
from mod_edge.plan.signature import layer_signature
from mod_edge.plan.targets import Lowering
from mod_edge.verification.graph_backends import onnx_backend
from mod_edge.verification.graph_check import check_graph
from tests.conftest import CAPACITY
from tests.export import graph_faults, quantized_faults
from tests.verification.conftest import CPU_INT8

pytestmark = pytest.mark.numeric

CONFIG = preset_config("tiny")
MOD = 1
CPU_INT4 = Lowering("cpu", "fp32", weight_format="int4")
RTX_INT4 = Lowering("rtx", "fp16", CAPACITY, "int4")
DELTA_INT8 = Lowering("tensorrt-delta", "fp32", weight_format="int8-weight-only")

FAULTS = {
    "levels from 0": (quantized_faults.levels_from_zero, CPU_INT8),
    "zero points of 0 in blocks": (quantized_faults.zero_points_of_zero, CPU_INT4),
    "a scale along the wrong axis": (quantized_faults.scales_along_the_wrong_axis, DELTA_INT8),
    "block scales along the wrong axis": (
        quantized_faults.scales_as_blocks_by_channels,
        CPU_INT4,
    ),
    "a block off by one": (quantized_faults.block_scales_off_by_one, CPU_INT4),
    "a block off by one in DequantizeLinear": (quantized_faults.block_scales_off_by_one, RTX_INT4),
    "one activation scale a tensor": (quantized_faults.one_activation_scale, CPU_INT8),
    "a column sum left out": (quantized_faults.column_sums_left_out, CPU_INT8),
}


@pytest.fixture
def check(quantized_recording):
    """`check(path, lowering)`: verify's result for the layer in that file."""

    def run(path, lowering):
        recording = quantized_recording(layer_signature(CONFIG, MOD, lowering), lowering)
        return check_graph(path, recording, onnx_backend(lowering))

    return run


@pytest.mark.parametrize(("fault", "lowering"), FAULTS.values(), ids=list(FAULTS))
def test_a_planted_fault_fails(check, quantized_graph, tmp_path, fault, lowering):
    healthy = quantized_graph(layer_signature(CONFIG, MOD, lowering), lowering)
    result = check(graph_faults.copy_graph(healthy, tmp_path, fault), lowering)
    assert result.status == "failed"
    assert result.outputs, "by its numbers"


def test_a_quantized_graph_that_does_not_load_is_a_failure(check, tmp_path):
    path = tmp_path / "01.onnx"
    path.write_bytes(b"no graph")
    result = check(path, CPU_INT8)
    assert result.status == "failed"
    assert result.reason.startswith("it does not load: ")


def test_a_quantized_router_fails(check, topology_of, tiny_checkpoint, tmp_path):
    signature = layer_signature(CONFIG, MOD, CPU_INT8)
    topology = topology_of(signature, CPU_INT8)
    quantized = topology.transposed
    assert "router.weight" in quantized
    ops = OPS["MatMulInteger"](CPU_INT8.weight_form(signature.kind))
    proto = quantize_graph(topology.proto, quantized, ops)
    path = tmp_path / "01.onnx"
    write_graph(
        replace(topology, proto=proto, quantized=quantized, ops=ops),
        graph_weights(Checkpoint(tiny_checkpoint), signature),
        path,
    )
    result = check(path, CPU_INT8)
    assert result.status == "failed"
    assert result.reason.startswith("it quantizes router.weight.codes")
