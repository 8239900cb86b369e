"""Graphs in the real compiler, without a GPU: what compiles, and which silent faults are errors."""

import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import onnx
import pytest
from onnx import TensorProto, helper

from mod_edge.bundle.engine_manifest import EngineSettings
from mod_edge.bundle.manifest import CONFIG_FILE, read_manifest
from mod_edge.bundle.shape_ranges import ShapeRange, StepLimits, optimization_profiles
from mod_edge.config import read_config
from mod_edge.errors import BackendError, ExportError
from mod_edge.export import compiler
from mod_edge.export.compiler import compile_graph
from mod_edge.native import trt
from mod_edge.plan.graph_kind import HEAD
from mod_edge.plan.signature import GraphSignature, TensorSpec, bundle_signatures
from tests.conftest import CAPACITY

pytest.importorskip("tensorrt_rtx")

LIMITS = StepLimits(max_step_tokens=128, opt_frames=2, max_frames=4, capacity=CAPACITY)
FLOAT16, INT64 = TensorProto.FLOAT16, TensorProto.INT64
HEADS = (1, 2, 8, 16)  # batch, heads, rows, head dim
# test_engines.py compiles every graph of rtx-fp16; here one graph of each kind is compiled.
OTHER_BUNDLES = [("rtx", "fp32"), ("rtx", "bf16"), ("tensorrt-delta", "fp16")]


@pytest.fixture(scope="module")
def rtx():
    return trt.load("tensorrt_rtx")


@pytest.fixture(scope="module")
def settings(rtx):
    return EngineSettings("rtx", "tensorrt_rtx", rtx.version, "89", "fp16", "test", LIMITS, 64, 3)


def spec(name, dims, dtype="float16"):
    return TensorSpec(name, dtype, dims)


def signature_of(inputs, outputs):
    return GraphSignature(HEAD, tuple(inputs), tuple(outputs))


def write_model(path, nodes, signature, initializers=()):
    """Write a graph with the signature's inputs and outputs; returns its path."""
    types = {"float16": FLOAT16, "int64": INT64, "float32": TensorProto.FLOAT}
    inputs, outputs = (
        [helper.make_tensor_value_info(item.name, types[item.dtype], item.dims) for item in specs]
        for specs in (signature.inputs, signature.outputs)
    )
    graph = helper.make_graph(nodes, "planted", inputs, outputs, list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def fixed(signature):
    """One profile: T from 1 to 8, all other dims fixed."""
    return {
        "any": {
            item.name: ShapeRange(
                *(tuple(size if dim == "T" else dim for dim in item.dims) for size in (1, 4, 8))
            )
            for item in signature.inputs
        }
    }


@pytest.fixture
def compile_planted(rtx, settings, tmp_path):
    """`compile_planted(nodes, signature, expected=...)`: compiles this graph as `expected`."""

    def run(nodes, signature, *, expected=None, initializers=(), profiles=None):
        path = write_model(tmp_path / "planted.onnx", nodes, signature, initializers)
        expected = expected or signature
        return compile_graph(rtx, path, expected, profiles or fixed(expected), settings)

    return run


ADD = [helper.make_node("Add", ["a", "b"], ["sum"], name="the_add")]
ADDED = signature_of([spec("a", (1, "T")), spec("b", (1, "T"))], [spec("sum", (1, "T"))])


# ---- what compiles ----


@pytest.mark.parametrize(("target", "precision"), OTHER_BUNDLES)
def test_every_kind_of_graph_compiles_in_every_dialect_and_precision(
    bundle_for, rtx, settings, target, precision
):
    bundle = bundle_for(target, precision)
    config, lowering = read_config(bundle / CONFIG_FILE), read_manifest(bundle).lowering
    for signature in bundle_signatures(config, lowering, layers=[0, 1]):
        profiles = optimization_profiles(signature, config, LIMITS)
        compiled = compile_graph(rtx, bundle / signature.file, signature, profiles, settings)
        assert memoryview(compiled.plan).nbytes > (bundle / signature.file).stat().st_size
        assert compiled.warnings == ()
        assert compiled.timing_cache == b""


def test_a_healthy_planted_graph_compiles(compile_planted):
    assert memoryview(compile_planted(ADD, ADDED).plan).nbytes > 1000


# ---- silently wrong engines ----


def test_an_input_that_attention_ignores_is_an_error(compile_planted):
    states = [spec(name, HEADS) for name in ("query", "key", "value")]
    outputs = [spec("attended", HEADS)]
    inputs = ["query", "key", "value"]
    healthy = [helper.make_node("Attention", inputs, ["attended"])]
    compile_planted(healthy, signature_of(states, outputs))
    inputs = [*inputs, "", "", "", "nonpad_kv_seqlen"]
    ignoring = [helper.make_node("Attention", inputs, ["attended"])]
    states.append(spec("nonpad_kv_seqlen", (1,), "int64"))
    with pytest.raises(ExportError, match=r"ignore an input \(Unused Input: nonpad_kv_seqlen\)"):
        compile_planted(ignoring, signature_of(states, outputs))


@pytest.mark.parametrize(
    ("expected", "fault"),
    [
        (
            replace(ADDED, inputs=(spec("a", (1, 3)), spec("b", (1, "T")))),
            r"input 'a': got HALF \[1, -1\], wanted HALF \[1, 3\]",
        ),
        (
            replace(ADDED, inputs=(spec("a", (1, "T"), "float32"), spec("b", (1, "T")))),
            r"input 'a': got HALF \[1, -1\], wanted FLOAT \[1, -1\]",
        ),
        (
            replace(ADDED, inputs=(*ADDED.inputs, spec("cos", (1, "T")))),
            r"input 'cos': got none, wanted HALF \[1, -1\]",
        ),
        (
            replace(ADDED, inputs=ADDED.inputs[:1]),
            r"input 'b': got HALF \[1, -1\], wanted none",
        ),
        (
            replace(ADDED, outputs=(spec("logits", (1, "T")),)),
            r"output 'logits': got none, wanted .*output 'sum': got HALF",
        ),
    ],
    ids=["dim", "dtype", "missing input", "unknown input", "output"],
)
def test_a_graph_that_is_not_its_signature_is_an_error(compile_planted, expected, fault):
    with pytest.raises(ExportError, match=fault):
        compile_planted(ADD, ADDED, expected=expected)


CACHE = spec("past_key", (1, 2, 32, 16))
WRITTEN = signature_of(
    [CACHE, spec("rows", (1, 2, "T", 16)), spec("write_index", (1,), "int64")],
    [replace(CACHE, name="present_key")],
)


def scatter(axis=2):
    inputs = ["past_key", "rows", "write_index"]
    return [helper.make_node("TensorScatter", inputs, ["present_key"], axis=axis, mode="linear")]


def test_a_cache_that_is_updated_in_place_compiles(compile_planted):
    compile_planted(scatter(), WRITTEN)


def test_a_cache_that_is_not_updated_in_place_is_an_error(compile_planted):
    nodes = [
        helper.make_node("ReduceSum", ["rows"], ["total"], keepdims=1),
        helper.make_node("Cast", ["write_index"], ["index"], to=FLOAT16),
        helper.make_node("Add", ["past_key", "total"], ["moved"]),
        helper.make_node("Add", ["moved", "index"], ["present_key"]),
    ]
    with pytest.raises(ExportError, match="0 updates of a KV cache, wanted 1"):
        compile_planted(nodes, WRITTEN)


def test_an_input_whose_values_determine_shapes_is_an_error(compile_planted):
    scalars = [helper.make_tensor(name, INT64, [], [value]) for name, value in (("z", 0), ("o", 1))]
    nodes = [
        helper.make_node("Squeeze", ["past_length"], ["limit"]),
        helper.make_node("Range", ["z", "limit", "o"], ["columns"]),
        helper.make_node("Cast", ["columns"], ["sum"], to=FLOAT16),
    ]
    signature = signature_of([spec("past_length", (1,), "int64")], [spec("sum", ("T",))])
    with pytest.raises(ExportError, match="depend on the values of input 'past_length'"):
        compile_planted(nodes, signature, initializers=scalars)


# ---- what is rejected ----


def test_an_op_that_the_parser_rejects_is_named_with_its_node(compile_planted):
    nodes = [helper.make_node("Nonsense", ["a", "b"], ["sum"], name="the_node")]
    with pytest.raises(ExportError, match=r"TensorRT-RTX .* head.onnx: .*'the_node' \(Nonsense\)"):
        compile_planted(nodes, ADDED)


def test_a_builder_error_is_quoted_without_source_places_and_driver_errors(compile_planted):
    names = ("values", "indices")
    nodes = [helper.make_node("TopK", ["a", "k"], names)]
    k = helper.make_tensor("k", INT64, [1], [4000])  # TensorRT takes 3840 at most
    outputs = [spec("values", (1, 4000)), spec("indices", (1, 4000), "int64")]
    with pytest.raises(ExportError, match="exceeds the maximum value") as caught:
        compile_planted(nodes, signature_of([spec("a", (1, 5000))], outputs), initializers=[k])
    text = str(caught.value)
    assert "\n" not in text
    assert not [each for each in ("cudaError", "/_src/", "checkMacros") if each in text]


def test_an_input_without_a_range_is_an_error(compile_planted):
    profiles = fixed(ADDED)
    del profiles["any"]["b"]
    with pytest.raises(ExportError, match="b is missing dimensions in profile 0"):
        compile_planted(ADD, ADDED, profiles=profiles)


def test_a_file_that_is_not_a_graph_is_an_error(rtx, settings, tmp_path):
    path = tmp_path / "head.onnx"
    path.write_bytes(b"\x08\x99 no model")
    with pytest.raises(ExportError, match="Failed to parse"):
        compile_graph(rtx, path, ADDED, fixed(ADDED), settings)


def test_missing_weights_are_an_error(rtx, settings, bundle_for, tmp_path):
    bundle = bundle_for("rtx", "fp16")
    config, lowering = read_config(bundle / CONFIG_FILE), read_manifest(bundle).lowering
    head = bundle_signatures(config, lowering)[-2]
    model = onnx.load(str(bundle / head.file), load_external_data=False)
    path = tmp_path / "head.onnx"
    path.write_bytes(model.SerializeToString())
    profiles = optimization_profiles(head, config, LIMITS)
    with pytest.raises(ExportError, match=r"initializer: norm\.weight"):
        compile_graph(rtx, path, head, profiles, settings)


def test_a_compiler_that_does_not_start_is_a_backend_error(rtx, settings, tmp_path):
    class NoBuilder:
        def __init__(self, logger):
            raise TypeError("factory function returned nullptr")

    broken = replace(rtx, api=type("api", (), {"Builder": NoBuilder}))
    with pytest.raises(BackendError, match=r"cannot compile here: .*see: mod-edge doctor"):
        compile_graph(broken, tmp_path / "any.onnx", ADDED, {}, settings)


@pytest.fixture
def ctrl_c(monkeypatch):
    """Ctrl-C arrives while TensorRT reports its first step; the list of steps reported so far."""
    steps = []
    monitor = compiler.progress_monitor

    def interrupted(api, must_stop):
        def ask():
            steps.append(None)
            if len(steps) == 1:
                signal.raise_signal(signal.SIGINT)
            return must_stop()

        return monitor(api, ask)

    monkeypatch.setattr(compiler, "progress_monitor", interrupted)
    # SIGINT is ignored where tests run in the background.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield steps
    signal.signal(signal.SIGINT, previous)


def test_ctrl_c_is_not_lost_in_tensorrt_and_ends_the_build_at_that_step(ctrl_c, compile_planted):
    with pytest.raises(KeyboardInterrupt):
        compile_planted(ADD, ADDED)
    assert len(ctrl_c) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_another_thread_a_graph_compiles_without_touching_signals(compile_planted):
    with ThreadPoolExecutor(1) as pool:
        assert memoryview(pool.submit(compile_planted, ADD, ADDED).result().plan).nbytes > 1000
