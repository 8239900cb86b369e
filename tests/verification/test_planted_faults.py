"""What `mod-edge verify` is for: each fault that such code has had, planted, turns it red.

Every fault is planted in one graph or one stream, and its healthy twin is green on the same inputs,
which come from a stream through the reference.
"""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest

from mod_edge.bundle.manifest import CONFIG_FILE, read_manifest
from mod_edge.config import read_config
from mod_edge.model.presets import preset_config
from mod_edge.plan.signature import layer_signature
from mod_edge.plan.targets import CPU_FP32, Lowering
from mod_edge.runtime.cpu.kv_cache import KvCache
from mod_edge.verification.graph_backends import onnx_backend
from mod_edge.verification.graph_check import ALLOWED_ERROR, check_graph
from mod_edge.verification.graph_evaluator import evaluator_backend
from mod_edge.verification.reference_graph import ReferenceGraph
from mod_edge.verification.verify import verify_bundle
from tests.conftest import CAPACITY
from tests.export import graph_faults, in_place_faults
from tests.export.graph_faults import Surgery

pytestmark = pytest.mark.numeric

CONFIG = preset_config("tiny")
IN_PLACE, IN_PLACE_FP16 = (Lowering("cuda", precision, CAPACITY) for precision in ("fp32", "fp16"))
MOD, DENSE = 1, 0

GRAPH_FAULTS = {
    "ranks instead of positions after TopK": (graph_faults.hidden_ranks, CPU_FP32, MOD),
    "ranks that the output tells of, too": (graph_faults.ranks_for_positions, IN_PLACE, MOD),
    "K-1 tokens kept": (in_place_faults.one_kept_less, IN_PLACE, MOD),
    "RoPE of the first k positions": (graph_faults.angles_by_row_number, CPU_FP32, MOD),
    "RoPE of the first k positions, in_place": (
        graph_faults.angles_by_row_number,
        IN_PLACE,
        MOD,
    ),
    "top-left causal": (in_place_faults.top_left_causal, IN_PLACE, DENSE),
    "top-left causal in half precision": (in_place_faults.top_left_causal, IN_PLACE_FP16, MOD),
    "scale applied twice": (in_place_faults.scaled_twice, IN_PLACE, DENSE),
    "scale applied twice in half precision": (in_place_faults.scaled_twice, IN_PLACE_FP16, DENSE),
    "router scaling delta for full": (graph_faults.other_scaling, CPU_FP32, MOD),
    "router scaling delta for full, in_place": (graph_faults.other_scaling, IN_PLACE, MOD),
    "a skipped token in the cache": (in_place_faults.skipped_token_in_the_cache, IN_PLACE, MOD),
}


@pytest.fixture
def check(any_bundle, recording_of, tmp_path):
    """`check(lowering, index, change=None, recording=None)`: verify's result for one layer.

    `change(path)` plants a fault in a copy of the layer.
    """

    def run(lowering, index, change=None, recording=None, backend=None):
        signature = layer_signature(CONFIG, index, lowering)
        source = any_bundle(lowering.target, lowering.precision) / signature.file
        path = tmp_path / source.name
        for suffix in (".onnx", ".data"):
            shutil.copy(source.with_suffix(suffix), path.with_suffix(suffix))
        if change is not None:
            change(path)
        recording = recording or recording_of(signature, lowering)
        return check_graph(path, recording, backend or onnx_backend(lowering))

    return run


def planted(fault):
    """`fault`, surgery on a loaded graph, as a change of its file."""

    def change(path):
        model = onnx.load(str(path), load_external_data=False)
        fault(Surgery(model))
        path.write_bytes(model.SerializeToString())

    return change


@pytest.mark.parametrize(
    ("fault", "lowering", "index"), GRAPH_FAULTS.values(), ids=list(GRAPH_FAULTS)
)
def test_a_planted_fault_is_red_and_its_healthy_twin_green(check, fault, lowering, index):
    healthy = check(lowering, index)
    assert healthy.status == "ok", healthy.reason
    assert healthy.worst.largest <= ALLOWED_ERROR[lowering.precision] / 3
    assert check(lowering, index, planted(fault)).status == "failed"


def one_weight_block(path):
    """32 x 32 weights of the up projection, changed by a tenth of their own size."""
    model = onnx.load(str(path), load_external_data=False)
    (tensor,) = [each for each in model.graph.initializer if each.name == "mlp.up_proj.weight"]
    offset = next(int(entry.value) for entry in tensor.external_data if entry.key == "offset")
    data = path.with_suffix(".data")
    weights = np.memmap(data, np.float32, "r+", offset=offset, shape=tuple(tensor.dims))
    weights[32:64, 64:96] *= 1.1
    weights.flush()


@pytest.mark.parametrize("lowering", [CPU_FP32, IN_PLACE], ids=["delta", "in_place"])
def test_one_changed_block_of_weights_is_red(check, lowering):
    assert check(lowering, MOD).status == "ok"
    assert check(lowering, MOD, one_weight_block).status == "failed"


def test_a_norm_that_overflows_in_float16_is_red_where_inputs_are_large(check, recorded_stream):
    model, recorder, _ = recorded_stream
    signature = layer_signature(CONFIG, DENSE, IN_PLACE_FP16)
    graph = ReferenceGraph(model, signature, IN_PLACE_FP16, recorder)
    largest = max(np.abs(step.inputs["hidden"]).max() for step in graph.steps)
    # to 1,000, as some channels of trained models are: its square is beyond float16's 65,504
    graph.steps = tuple(
        replace(step, inputs=step.inputs | {"hidden": step.inputs["hidden"] * (1000 / largest)})
        for step in graph.steps
    )
    for step in graph.steps:
        assert step.inputs["hidden"].dtype == np.float16
    fault = planted(in_place_faults.half_precision_norms)
    for backend in (onnx_backend(IN_PLACE_FP16), evaluator_backend(IN_PLACE_FP16)):
        assert check(IN_PLACE_FP16, DENSE, None, graph.recording(), backend).status == "ok"
    # ONNX Runtime's CPU computes float16 in float32, casts between dropped: it cannot see this.
    assert check(IN_PLACE_FP16, DENSE, fault, graph.recording()).status == "ok"
    assert check(IN_PLACE_FP16, DENSE, fault, graph.recording(), backend).status == "failed"


@pytest.mark.parametrize(("target", "precision"), [("cpu", "fp32"), ("cuda", "fp32")])
def test_a_sink_that_is_not_rebased_turns_the_stream_red(
    any_bundle, tiny_checkpoint, monkeypatch, target, precision
):
    bundle = any_bundle(target, precision)
    assert read_config(bundle / CONFIG_FILE) == CONFIG
    assert read_manifest(bundle).lowering.precision == precision
    healthy = verify_bundle(bundle, tiny_checkpoint)
    assert healthy.is_ok
    evict = KvCache.evict
    monkeypatch.setattr(
        KvCache, "evict", lambda cache, eviction: evict(cache, replace(eviction, num_evicted=0))
    )
    report = verify_bundle(bundle, tiny_checkpoint)
    assert {graph.status for graph in report.graphs} <= {"ok", "not run"}  # no graph is at fault
    assert [stream.status for stream in report.streams if stream.backend == "onnx CPU"] == [
        "failed"
    ]
    assert not report.is_ok
