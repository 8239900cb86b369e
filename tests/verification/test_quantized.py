"""Quantized graphs: judged by a reference with the same codes, and what quantizing costs."""

import json
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from mod_edge.bundle.bundle import open_bundle
from mod_edge.bundle.manifest import MANIFEST_FILE
from mod_edge.commands.app import app
from mod_edge.errors import BundleError
from mod_edge.export.trace import trace, with_form
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.presets import preset_config
from mod_edge.model.quantized import RoundingLinear, quantize_model
from mod_edge.model.weight_codes import weight_codes
from mod_edge.native.int8_products import U8_BY_U8
from mod_edge.plan.graph_kind import DENSE, VISION
from mod_edge.plan.signature import bundle_signatures, head_signature, layer_signature
from mod_edge.plan.targets import CPU_FP32, TARGETS, Lowering
from mod_edge.plan.weight_forms import INT8_ROWS
from mod_edge.runtime.backends import BackendChoice, load_model
from mod_edge.runtime.cpu.kv_cache import KvCache
from mod_edge.verification import graph_backends, stream_backends
from mod_edge.verification.golden import Golden, GoldenWriter
from mod_edge.verification.graph_backends import (
    ONNX_CPU,
    ONNX_CPU_UNSIGNED,
    GraphBackend,
    onnx_backend,
)
from mod_edge.verification.graph_check import check_graph
from mod_edge.verification.graph_evaluator import NAME, EvaluatorRunner, evaluator_backend
from mod_edge.verification.reference_graph import ReferenceGraph
from mod_edge.verification.reference_stream import follow_stream
from mod_edge.verification.stream_backends import check_streams, stream_limits
from mod_edge.verification.tolerances import (
    ALLOWED_TIMES_COST,
    LARGEST_COST_JUDGED,
    LEAST_TIED_LOGITS,
    STREAM_TOLERANCES,
    StreamQuantizingCost,
    StreamTolerance,
    stream_tolerance,
)
from mod_edge.verification.torch_reference import TorchReference
from mod_edge.verification.verify import verify_bundle, verify_golden
from tests.conftest import CAPACITY
from tests.verification.conftest import CPU_INT8

pytestmark = pytest.mark.numeric

CONFIG = preset_config("tiny")
GRAPHS = [signature.name for signature in bundle_signatures(CONFIG, CPU_INT8)]
MOD = 1
CPU_INT4 = Lowering("cpu", "fp32", weight_format="int4")
CUDA_INT8 = Lowering("cuda", "fp32", CAPACITY, "int8-weight-only")
CUDA_INT4 = Lowering("cuda", "fp32", CAPACITY, "int4")
RTX_INT8 = Lowering("rtx", "fp16", CAPACITY, "int8-weight-only")
RTX_INT4 = Lowering("rtx", "fp16", CAPACITY, "int4")
DELTA_INT8 = Lowering("tensorrt-delta", "fp32", weight_format="int8-weight-only")
# Largest error of a layer's outputs where only weights are quantized: measured 1.2e-6 in fp32 and
# 3.9e-3 in fp16, as without quantization.
HEALTHY_WEIGHT_ONLY = {"fp32": 6e-6, "fp16": 8e-3}


def invoke(*arguments):
    return CliRunner().invoke(app, ["verify", *map(str, arguments)])


# ---- whole bundles ----


def test_an_int8_bundle_is_green_with_both_products_and_saves_golden_files(
    recorded_int8, int8_bundle, tiny_checkpoint, tmp_path
):
    report = verify_bundle(int8_bundle, tiny_checkpoint, golden=tmp_path / "golden")
    assert report.is_ok, [(each.graph, each.reason) for each in report.graphs]
    assert report.reference.startswith("torch fp32, weights int8 (torch ")
    backends = {(result.graph, result.backend) for result in report.graphs}
    assert backends == {(name, cpu) for name in GRAPHS for cpu in (ONNX_CPU, ONNX_CPU_UNSIGNED)}
    (stream,) = report.streams
    assert (stream.status, stream.backend) == ("ok", ONNX_CPU)
    assert stream.mean < stream.cost.mean < stream.allowed_mean
    for result in report.graphs:
        mean = max(result.means.values())
        assert mean < 0.75 * result.cost.mean, "its own error is the smaller part"
        assert 1e-4 < result.cost.mean < result.cost.largest < 0.2
        assert 0.99 < result.cost.cosine < 1

    again = verify_golden(int8_bundle, tmp_path / "golden", graph="layer-01")
    assert again.is_ok, [each.reason for each in again.graphs]
    assert all(0.99 < result.cost.cosine < 1 for result in again.graphs), "of the saved steps"
    entries = json.loads((tmp_path / "golden" / MANIFEST_FILE).read_text())["graphs"]
    assert all("polygraphy" not in entry for entry in entries.values()), "it has not the option"
    bundle = open_bundle(int8_bundle)
    golden = Golden(tmp_path / "golden", bundle)
    (stream,) = check_streams(bundle, golden.trace, golden.follow, golden.stream_cost)
    assert stream.status == "ok", stream.reason


def test_a_sink_that_is_not_rebased_fails_the_int8_stream(
    int8_bundle, int8_stream, int8_cost, twin_of, monkeypatch
):
    bundle, (_, recorded_trace) = open_bundle(int8_bundle), int8_stream
    follow = partial(follow_stream, twin_of(CPU_INT8), recorded_trace)
    (healthy,) = check_streams(bundle, recorded_trace, follow, int8_cost)
    assert healthy.status == "ok", healthy.reason
    evict = KvCache.evict
    monkeypatch.setattr(
        KvCache, "evict", lambda cache, eviction: evict(cache, replace(eviction, num_evicted=0))
    )
    (result,) = check_streams(bundle, recorded_trace, follow, int8_cost)
    assert result.status == "failed"
    assert result.mean > ALLOWED_TIMES_COST * int8_cost.mean > healthy.mean


def test_a_stream_is_judged_by_what_quantizing_costs_it():
    judged = stream_tolerance(CPU_INT8, StreamQuantizingCost(largest=0.06, mean=0.02, gap=0.9))
    assert judged == StreamTolerance(ALLOWED_TIMES_COST * 0.06, ALLOWED_TIMES_COST * 0.02, 0.9)
    assert (
        stream_tolerance(CPU_INT8, StreamQuantizingCost(0.06, 0.02, 0.0)).tied_logits
        == LEAST_TIED_LOGITS
    )
    too_much = StreamQuantizingCost(2.0, 1.1 * LARGEST_COST_JUDGED, 0.7)
    assert not stream_tolerance(CPU_INT8, too_much).is_judged
    assert stream_tolerance(CUDA_INT8, too_much) == STREAM_TOLERANCES["fp32"], "weights alone"


@pytest.mark.parametrize(
    ("layers", "lowering"),
    [([0, 1], CPU_INT8), (list(range(CONFIG.text_config.num_hidden_layers)), CUDA_INT8)],
    ids=["layers missing", "weights alone"],
)
def test_the_original_model_is_not_loaded_where_no_stream_is_judged_by_the_cost(
    int8_bundle, tiny_checkpoint, recorded_int8, tmp_path, monkeypatch, layers, lowering
):
    bundle = open_bundle(int8_bundle)
    manifest = replace(bundle.manifest, layers=layers, lowering=lowering)
    bundle = replace(bundle, manifest=manifest)
    reference = TorchReference(bundle, tiny_checkpoint, None)
    monkeypatch.setattr(Checkpoint, "load_model", lambda _: pytest.fail("loaded"))
    assert reference.stream_cost is None
    writer = GoldenWriter(tmp_path, manifest, reference.name)
    writer.add_stream(reference.trace, reference.stream_cost)
    writer.finish()
    assert Golden(tmp_path, bundle).stream_cost is None
    assert "stream_cost" not in json.loads((tmp_path / MANIFEST_FILE).read_text())


def test_golden_files_without_a_cost_that_the_stream_is_judged_by_are_refused(
    int8_bundle, int8_stream, tmp_path
):
    bundle = open_bundle(int8_bundle)
    writer = GoldenWriter(tmp_path, bundle.manifest, "torch fp32")
    writer.add_stream(int8_stream[1], None)
    writer.finish()
    with pytest.raises(BundleError, match="does not say what quantizing costs the stream; save"):
        Golden(tmp_path, bundle)


def test_a_stream_that_amplifies_rounding_is_not_judged_and_says_so(
    int8_bundle, int8_stream, twin_of
):
    bundle, (_, recorded_trace) = open_bundle(int8_bundle), int8_stream
    follow = partial(follow_stream, twin_of(CPU_INT8), recorded_trace)
    (stream,) = check_streams(bundle, recorded_trace, follow, StreamQuantizingCost(2.0, 0.5, 0.7))
    assert stream.status == "not judged"
    assert stream.reason.startswith("this model amplifies rounding so much")
    assert stream.mean > 0, "the errors are shown"


def test_on_a_cpu_without_exact_products_only_the_exact_ones_are_run(
    recorded_int8, int8_bundle, tiny_checkpoint, monkeypatch
):
    for module in (graph_backends, stream_backends):
        monkeypatch.setattr(module, "exact_int8_products", lambda: U8_BY_U8)
    report = verify_bundle(int8_bundle, tiny_checkpoint, graph="head")
    assert report.is_ok
    statuses = {result.backend: (result.status, result.reason) for result in report.graphs}
    reason = "onnxruntime's u8 x s8 products are not exact on this CPU"
    assert statuses == {ONNX_CPU: ("not run", reason), ONNX_CPU_UNSIGNED: ("ok", "")}


def test_graphs_without_int8_products_are_run_once():
    backends, _ = graph_backends.graph_backends(CPU_INT4)
    takers = {
        kind: [each.name for each in backends if each.takes(CPU_INT4.weight_form(kind))]
        for kind in (VISION, DENSE)
    }
    assert takers == {VISION: [ONNX_CPU, ONNX_CPU_UNSIGNED], DENSE: [ONNX_CPU]}


def test_the_command_shows_what_quantizing_costs_beside_the_graphs_own_error(
    recorded_int8, int8_bundle, tiny_checkpoint
):
    options = (int8_bundle, "--checkpoint", tiny_checkpoint, "--graph", "head")
    shown = invoke(*options)
    assert shown.exit_code == 0, shown.output
    assert "cost       of quantizing: errors against the checkpoint's own weights" in (shown.stdout)
    assert "cost max" in shown.stdout
    assert ", mean " in shown.stdout, "the mean that is allowed"
    document = json.loads(invoke(*options, "--json").stdout)
    cost = document["graphs"][0]["cost"]
    assert set(cost) == {"largest", "mean", "cosine"}
    assert f"{cost['largest']:.1e}" in shown.stdout


def test_backend_torch_runs_the_checkpoints_own_weights_and_says_so(
    int8_bundle, int8_stream, tiny_checkpoint
):
    bundle = open_bundle(int8_bundle)
    limits = stream_limits(bundle, int8_stream[1])
    model, reason = load_model(bundle, limits, BackendChoice("torch", checkpoint=tiny_checkpoint))
    with model:
        assert model.name.startswith("torch (reference")
    assert reason == "as requested, with the checkpoint's weights, not int8"


# ---- single graphs of every form ----


@pytest.mark.parametrize(
    "lowering",
    [CPU_INT8, CPU_INT4, CUDA_INT8, CUDA_INT4, RTX_INT8, RTX_INT4, DELTA_INT8],
    ids=lambda lowering: f"{lowering.target}-{lowering.weight_format}",
)
def test_a_layer_of_every_form_agrees_with_the_quantized_reference(
    quantized_graph, quantized_recording, lowering
):
    signature = layer_signature(CONFIG, MOD, lowering)
    path, recording = quantized_graph(signature, lowering), quantized_recording(signature, lowering)
    result = check_graph(path, recording, onnx_backend(lowering))
    assert result.status == "ok", result.reason
    if not lowering.weight_form(signature.kind).activations:
        assert result.worst.largest <= HEALTHY_WEIGHT_ONLY[lowering.precision]
    assert result.cost.mean > 5 * max(result.means.values())
    assert ("4" in lowering.weight_format) == (result.cost.mean > 0.01), "int4 costs more"


@pytest.mark.parametrize(
    "lowering",
    [CPU_INT8, RTX_INT8, RTX_INT4, DELTA_INT8],
    ids=lambda lowering: f"{lowering.target}-{lowering.weight_format}",
)
def test_onnxs_own_evaluator_agrees_where_all_ops_are_standard(
    quantized_graph, quantized_recording, lowering
):
    signature = layer_signature(CONFIG, MOD, lowering)
    backend = GraphBackend(NAME, EvaluatorRunner)
    recording = quantized_recording(signature, lowering)
    result = check_graph(quantized_graph(signature, lowering), recording, backend)
    assert result.status == "ok", result.reason


def test_the_evaluator_does_not_run_an_op_that_is_not_onnxs():
    skipped = evaluator_backend(replace(CUDA_INT4, precision="fp16"))
    assert skipped.reason == "MatMulNBits is onnxruntime's own op, which ONNX does not define"
    assert isinstance(evaluator_backend(RTX_INT4), GraphBackend)


# ---- the reference ----


def test_a_tied_head_is_quantized_apart_from_the_embedding(make_config, make_model):
    config = make_config(tie_word_embeddings=True)
    model = make_model(config)
    tied = model.lm_head.weight.clone()
    twin = quantize_model(model, CPU_INT8)
    signature = head_signature(config, CPU_INT8)
    rows = SimpleNamespace(head_rows={"first": torch.randn(3, config.text_config.hidden_size)})
    head = ReferenceGraph(twin, signature, CPU_INT8, rows).module(torch.float32).lm_head
    assert isinstance(head, RoundingLinear)
    codes = weight_codes("lm_head.weight", tied, INT8_ROWS)
    assert torch.equal(head.weight, codes.values())
    assert twin.model.embed_tokens.weight.data_ptr() != head.weight.data_ptr()


# ---- structure ----

QUANTIZED_OPS = {"DequantizeLinear", "MatMulInteger", "MatMulNBits"}
FORMS = {
    form
    for target in TARGETS.values()
    for weights in target.weight_formats
    for form in (weights.layers, weights.others)
    if form is not None
}


def test_no_quantized_weight_feeds_a_router_or_a_norm():
    config = replace(CONFIG, text_config=replace(CONFIG.text_config, qk_norm=True))
    topology = trace(config, layer_signature(config, MOD, CPU_FP32), CPU_FP32)
    kept = {name for name in topology.weight_shapes if "router" in name or "norm" in name}
    assert kept >= {
        "router.weight",
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        "self_attn.q_norm.weight",
        "self_attn.k_norm.weight",
    }
    for form in FORMS:
        graph = with_form(topology, form).proto.graph
        made = {
            output
            for node in graph.node
            if node.op_type in QUANTIZED_OPS
            for output in (*node.input, *node.output)
        }
        readers = [node for node in graph.node if kept & set(node.input)]
        assert {name for node in readers for name in node.input} >= kept, form
        for node in readers:
            assert node.op_type not in QUANTIZED_OPS
            weights = set(node.input) & kept
            assert not made & weights, (form, weights)
        assert {value.name for value in graph.input} >= kept, "as float32 weights"
        quantized = {
            re.sub(r"(\.\d)?\.codes$", "", name) for name in made
        }  # weights or their parts
        assert len(quantized & set(topology.weight_shapes)) == 7, "q, k, v, o, gate, up, down"
