"""Layers with biases and head norms, as Qwen2 and Qwen3 have: graphs, faults, verify, compiler."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from mod_edge.bundle.engine_manifest import EngineSettings
from mod_edge.bundle.shape_ranges import StepLimits, optimization_profiles
from mod_edge.errors import ExportError
from mod_edge.export import bundle_writer as bundle_module
from mod_edge.export.bundle_writer import export_bundle, graph_weights
from mod_edge.export.check import check_numbers, check_structure
from mod_edge.export.compiler import compile_graph
from mod_edge.export.step_io import reference_module
from mod_edge.export.trace import trace, write_graph
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.presets import preset_config, write_random_checkpoint
from mod_edge.native import trt
from mod_edge.plan.graph_kind import HEAD, VISION
from mod_edge.plan.signature import layer_signature
from mod_edge.plan.targets import CPU_FP32, TARGETS, Lowering
from mod_edge.verification.verify import verify_bundle
from tests.conftest import CAPACITY
from tests.export.graph_faults import copy_graph
from tests.export.node_dtypes import dtype_of_inputs

pytestmark = pytest.mark.numeric

LIMITS = StepLimits(max_step_tokens=128, opt_frames=2, max_frames=4, capacity=CAPACITY)
HALF = Lowering("rtx", "fp16", CAPACITY)
BIASES = tuple(f"self_attn.{name}_proj.bias" for name in "qkv")
HEAD_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The tiny geometry with biases and head norms."""
    folder = tmp_path_factory.mktemp("variants") / "checkpoint"
    folder.mkdir()
    config = preset_config("tiny")
    text = replace(config.text_config, attention_bias=True, qk_norm=True)
    write_random_checkpoint(replace(config, text_config=text), folder, seed=1)
    return Checkpoint(folder)


@pytest.fixture(scope="module")
def bundle(checkpoint, tiny_topologies):
    """Its bundle for CPUs; vision and head are those of the tiny preset (10 s)."""
    known = {kind: tiny_topologies[kind] for kind in (VISION, HEAD)}
    folder = checkpoint.path.parent / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            bundle_module,
            "trace",
            lambda config, signature, *args: (
                known.get(signature.kind) or trace(config, signature, *args)
            ),
        )
        export_bundle(checkpoint, folder)
    return folder


@pytest.fixture(scope="module")
def half_layer(checkpoint, tmp_path_factory):
    """Signature, path and dtypes of weights of a MoD layer, in place, in fp16 (5 s)."""
    signature = layer_signature(checkpoint.config, 1, HALF)
    topology = trace(checkpoint.config, signature, HALF)
    path = tmp_path_factory.mktemp("half") / "01.onnx"
    write_graph(topology, graph_weights(checkpoint, signature), path)
    check_structure(path, signature, topology.weight_shapes, has_router=True)
    return signature, path, topology.weight_dtypes


def numbers_of(checkpoint, path, signature, lowering, dtypes):
    """The error of a graph against the reference."""
    config = checkpoint.config
    return check_numbers(
        path,
        config,
        signature,
        lowering,
        lambda: reference_module(
            config, signature.kind, graph_weights(checkpoint, signature), dtypes
        ),
    )


# ---- graphs ----


@pytest.mark.parametrize("index", [0, 1], ids=["dense", "mod"])
def test_biases_and_head_norms_occur_once_with_their_own_values(bundle, checkpoint, index):
    graph = onnx.load(str(bundle / "layers" / f"{index:02}.onnx")).graph
    found = {tensor.name: tensor for tensor in graph.initializer}
    uses = [name for node in graph.node for name in node.input]
    for name in BIASES + HEAD_NORMS:
        theirs = checkpoint.tensor(f"model.layers.{index}.{name}").numpy()
        np.testing.assert_array_equal(numpy_helper.to_array(found[name]), theirs, name)
        assert uses.count(name) == 1, name


def test_head_norms_compute_in_float32_and_biases_in_the_layers_precision(half_layer):
    _, path, dtypes = half_layer
    assert {dtypes[name] for name in HEAD_NORMS} == {torch.float32}
    assert {dtypes[name] for name in BIASES} == {torch.float16}
    model = onnx.load(str(path), load_external_data=False)
    squares = [node for node in model.graph.node if node.op_type == "Pow"]
    assert len(squares) == 4  # two norms of the layer, two of the heads
    assert dtype_of_inputs(model, "Pow") == {TensorProto.FLOAT}


def test_a_layer_in_half_precision_agrees_with_the_reference(checkpoint, half_layer):
    signature, path, dtypes = half_layer
    numbers_of(checkpoint, path, signature, HALF, dtypes)


def test_tensorrt_rtx_compiles_a_layer(checkpoint, half_layer):
    pytest.importorskip("tensorrt_rtx")
    rtx = trt.load("tensorrt_rtx")
    settings = EngineSettings(
        "rtx", "tensorrt_rtx", rtx.version, "89", "fp16", "test", LIMITS, 64, 3
    )
    signature, path, _ = half_layer
    profiles = optimization_profiles(signature, checkpoint.config, LIMITS)
    compiled = compile_graph(rtx, path, signature, profiles, settings)
    assert memoryview(compiled.plan).nbytes > path.stat().st_size
    assert compiled.warnings == ()


# ---- faults ----


def swapped_head_norms(cut):
    cut.swap_weights(*HEAD_NORMS)


def swapped_key_and_value_biases(cut):
    cut.swap_weights(*BIASES[1:])


def query_without_its_bias(cut):
    (added,) = cut.consumers(BIASES[0])
    cut.bypass(added, next(name for name in added.input if name != BIASES[0]))


def key_without_its_norm(cut):
    """The key's norm without its weight: divided by the root mean square all the same."""
    (scaled,) = cut.consumers(HEAD_NORMS[1])
    cut.bypass(scaled, next(name for name in scaled.input if name != HEAD_NORMS[1]))


FAULTS = [
    swapped_head_norms,
    swapped_key_and_value_biases,
    query_without_its_bias,
    key_without_its_norm,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_every_planted_fault_is_an_export_error(bundle, checkpoint, tmp_path, fault):
    # The query's bias gives 0.016 of the largest value, the swapped norms 0.2; 2e-5 is allowed.
    signature = layer_signature(checkpoint.config, 1, CPU_FP32)
    dtypes = dict.fromkeys(dict(graph_weights(checkpoint, signature)), torch.float32)
    path = copy_graph(bundle / signature.file, tmp_path, fault)
    with pytest.raises(ExportError, match="differs from the reference"):
        numbers_of(checkpoint, path, signature, CPU_FP32, dtypes)


# ---- verify ----


def test_verify_is_green(bundle, checkpoint):
    require_green(verify_bundle(bundle, checkpoint.path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "precision"), [("cuda", "fp32"), ("cuda", "fp16"), ("tensorrt-delta", "fp16")]
)
def test_verify_is_green_in_every_dialect_and_precision(checkpoint, tmp_path, target, precision):
    capacity = CAPACITY if TARGETS[target].dialect == "in_place" else None
    export_bundle(checkpoint, tmp_path / "half", lowering=Lowering(target, precision, capacity))
    require_green(verify_bundle(tmp_path / "half", checkpoint.path))


def require_green(report):
    assert report.is_ok, [result.reason for result in (*report.graphs, *report.streams)]
    assert {stream.status for stream in report.streams if stream.backend == "onnx CPU"} == {"ok"}
