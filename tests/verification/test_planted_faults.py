"""Faults that such code has had: `mod-edge verify` finds each of them.

Every fault is planted in one graph or one stream, and the healthy one passes on the same inputs,
which come from a stream through the reference.
"""

from dataclasses import replace

import numpy as np
import pytest

from mod_edge.model.presets import preset_config
from mod_edge.plan.signature import layer_signature
from mod_edge.plan.targets import CPU_FP32, Lowering
from mod_edge.runtime.cpu.kv_cache import KvCache
from mod_edge.verification.graph_backends import onnx_backend
from mod_edge.verification.graph_check import check_graph
from mod_edge.verification.graph_evaluator import evaluator_backend
from mod_edge.verification.reference_graph import ReferenceGraph
from mod_edge.verification.tolerances import ALLOWED_ERROR
from mod_edge.verification.verify import verify_bundle
from tests.conftest import CAPACITY
from tests.export import graph_faults, in_place_faults

pytestmark = pytest.mark.numeric

CONFIG = preset_config("tiny")
IN_PLACE, IN_PLACE_FP16 = (Lowering("cuda", precision, CAPACITY) for precision in ("fp32", "fp16"))
TENSORRT_DELTA = Lowering("tensorrt-delta", "fp16")
MOD, DENSE = 1, 0

GRAPH_FAULTS = {
    "ranks instead of positions after TopK": (graph_faults.hidden_ranks, CPU_FP32, MOD),
    "ranks in the output kept too": (graph_faults.ranks_for_positions, IN_PLACE, MOD),
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
    "unused rows attended to": (graph_faults.unmasked_past, TENSORRT_DELTA, DENSE),
    "an unused row attended to": (graph_faults.off_by_one_past, TENSORRT_DELTA, MOD),
    "a skipped token in the cache": (in_place_faults.skipped_token_in_the_cache, IN_PLACE, MOD),
}


@pytest.fixture
def check(any_bundle, recording_of, tmp_path):
    """`check(lowering, index, fault=None)`: verify's result for a layer with the fault planted."""

    def run(lowering, index, fault=None, *, recording=None, backend=None):
        signature = layer_signature(CONFIG, index, lowering)
        source = any_bundle(lowering.target, lowering.precision) / signature.file
        path = graph_faults.copy_graph(source, tmp_path, fault)
        recording = recording or recording_of(signature, lowering)
        return check_graph(path, recording, backend or onnx_backend(lowering))

    return run


@pytest.mark.parametrize(
    ("fault", "lowering", "index"), GRAPH_FAULTS.values(), ids=list(GRAPH_FAULTS)
)
def test_a_planted_fault_fails_and_the_healthy_graph_passes(check, fault, lowering, index):
    healthy = check(lowering, index)
    assert healthy.status == "ok", healthy.reason
    assert healthy.worst.largest <= ALLOWED_ERROR[lowering.precision] / 3
    assert check(lowering, index, fault).status == "failed"


def test_a_norm_that_overflows_in_float16_fails_where_inputs_are_large(check, recorded_stream):
    model, recorder, _ = recorded_stream
    signature = layer_signature(CONFIG, DENSE, IN_PLACE_FP16)
    graph = ReferenceGraph(model, signature, IN_PLACE_FP16, recorder)
    largest = max(np.abs(step.inputs["hidden"]).max() for step in graph.steps)
    # Up to 1,000, as in some channels of trained models: the square exceeds float16's 65,504.
    graph.steps = tuple(
        replace(step, inputs=step.inputs | {"hidden": step.inputs["hidden"] * (1000 / largest)})
        for step in graph.steps
    )
    for step in graph.steps:
        assert step.inputs["hidden"].dtype == np.float16
    recording, fault = graph.recording(), in_place_faults.half_precision_norms
    for backend in (onnx_backend(IN_PLACE_FP16), evaluator_backend(IN_PLACE_FP16)):
        healthy = check(IN_PLACE_FP16, DENSE, recording=recording, backend=backend)
        assert healthy.status == "ok"
    # ONNX Runtime's CPU computes float16 in float32 and drops the casts: it cannot find this.
    assert check(IN_PLACE_FP16, DENSE, fault, recording=recording).status == "ok"
    faulty = check(IN_PLACE_FP16, DENSE, fault, recording=recording, backend=backend)
    assert faulty.status == "failed"


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_sink_that_is_not_rebased_fails_the_stream(
    recorded, any_bundle, tiny_checkpoint, monkeypatch, target
):
    bundle = any_bundle(target, "fp32")
    assert verify_bundle(bundle, tiny_checkpoint).is_ok
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
