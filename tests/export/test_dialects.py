"""The dialects and precisions of a layer: ops, dtypes and numbers for each target."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mod_edge.bundle.manifest import CONFIG_FILE, EMBEDDING_FILE, read_manifest
from mod_edge.config import read_config
from mod_edge.errors import ConfigError, ExportError
from mod_edge.export.bundle_writer import graph_weights
from mod_edge.export.check import ALLOWED_RELATIVE_ERROR, STEP_SHAPES, relative_errors
from mod_edge.export.lower import DECOMPOSABLE, mark_attention_decomposable, without_decomposable
from mod_edge.export.random_step import random_step
from mod_edge.export.step_io import reference_module
from mod_edge.export.trace import rounded
from mod_edge.export.widen import float32_of_bits, write_widened
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.native.onnx_session import session_options
from mod_edge.plan.layout import step_layout
from mod_edge.plan.signature import bundle_signatures
from mod_edge.plan.targets import TARGETS, Lowering
from tests.conftest import CAPACITY
from tests.export.node_dtypes import dtype_of_inputs

pytestmark = pytest.mark.numeric

ALL = [
    ("cuda", "fp32"),
    ("rtx", "fp32"),
    ("rtx", "fp16"),
    ("rtx", "bf16"),
    ("tensorrt-delta", "fp16"),
]
IN_PLACE = [pair for pair in ALL if TARGETS[pair[0]].dialect == "in_place"]
ONNX_TYPES = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
}
# onnx's evaluator against ONNX Runtime: at most 7.1e-7 measured; a wrong mask gives 0.1.
EVALUATOR_ERROR = 4e-6

every_bundle = pytest.mark.parametrize(("target", "precision"), ALL)


def lowering_of(target, precision):
    return Lowering(target, precision, CAPACITY if TARGETS[target].dialect == "in_place" else None)


def layers_of(bundle):
    """Signature and graph, without weights, of the first dense and the first MoD layer."""
    config, lowering = read_config(bundle / CONFIG_FILE), read_manifest(bundle).lowering
    for signature in bundle_signatures(config, lowering, [0, 1])[1:3]:
        yield signature, onnx.load(str(bundle / signature.file), load_external_data=False)


def attributes(node):
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


# ---- ops ----


@pytest.mark.parametrize(("target", "precision"), IN_PLACE)
def test_an_in_place_layer_writes_the_cache_and_attends_with_an_explicit_mask(
    bundle_for, target, precision
):
    for signature, model in layers_of(bundle_for(target, precision)):
        nodes = model.graph.node
        scatters = [node for node in nodes if node.op_type == "TensorScatter"]
        assert [node.input[0] for node in scatters] == ["past_key", "past_value"]
        assert [node.output[0] for node in scatters] == ["present_key", "present_value"]
        for node in scatters:
            assert node.input[2] == "write_index"
            assert attributes(node)["mode"] == b"linear"
        (attention,) = [node for node in nodes if node.op_type == "Attention"]
        assert attention.input[1:3] == ["present_key", "present_value"]
        assert len(attention.input) == 4  # no past, no nonpad_kv_seqlen: TensorRT ignores them
        assert len(attention.output) == 1
        named = attributes(attention)
        assert named.pop("scale") == 1.0  # else TensorRT multiplies the whole cached key
        assert named.pop(DECOMPOSABLE, None) == (
            1 if (target, precision) == ("rtx", "fp32") else None
        )
        assert not named  # no is_causal (top-left in TensorRT), no softmax_precision (refused)
        assert signature.aliases == {"present_key": "past_key", "present_value": "past_value"}


@every_bundle
def test_the_opset_is_the_targets(bundle_for, target, precision):
    for _, model in layers_of(bundle_for(target, precision)):
        assert [(each.domain, each.version) for each in model.opset_import] == [
            ("", TARGETS[target].opset)
        ]


@pytest.mark.parametrize(("target", "precision"), [("cpu", "fp32"), *ALL])
def test_inputs_and_outputs_are_the_signatures(any_bundle, target, precision):
    bundle = any_bundle(target, precision)
    config = read_config(bundle / CONFIG_FILE)
    for signature in bundle_signatures(config, lowering_of(target, precision)):
        graph = onnx.load(str(bundle / signature.file), load_external_data=False).graph
        for values, specs in ((graph.input, signature.inputs), (graph.output, signature.outputs)):
            assert [value.name for value in values] == [spec.name for spec in specs]
            for value, spec in zip(values, specs, strict=True):
                tensor = value.type.tensor_type
                dims = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
                assert dims == spec.dims, value.name
                dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
                assert dtype == spec.dtype, value.name


# ---- dtypes ----


@every_bundle
def test_weights_have_the_precision_and_norms_and_router_stay_float32(
    bundle_for, target, precision
):
    bundle = bundle_for(target, precision)
    graphs = [model for _, model in layers_of(bundle)]
    graphs += [
        onnx.load(str(bundle / name), load_external_data=False)
        for name in ("vision.onnx", "head.onnx")
    ]
    for model in graphs:
        for tensor in model.graph.initializer:
            if tensor.data_location != TensorProto.EXTERNAL:
                continue
            is_wide = any(part in tensor.name for part in ("norm", "router"))
            wanted = TensorProto.FLOAT if is_wide else ONNX_TYPES[precision]
            assert tensor.data_type == wanted, tensor.name


@pytest.mark.parametrize(("target", "precision"), [("rtx", "fp16"), ("tensorrt-delta", "fp16")])
def test_norms_softmax_and_router_compute_in_float32(bundle_for, target, precision):
    bundle = bundle_for(target, precision)
    vision = onnx.load(str(bundle / "vision.onnx"), load_external_data=False)
    for op_type in ("LayerNormalization", "Softmax"):
        assert dtype_of_inputs(vision, op_type) == {TensorProto.FLOAT}, op_type
    for signature, model in layers_of(bundle):
        for op_type in ("Pow", "ReduceMean", "Softmax", "Sigmoid"):
            found = dtype_of_inputs(model, op_type)
            is_router_or_norm = op_type != "Sigmoid"  # SwiGLU's is in the layer's own precision
            assert not is_router_or_norm or found <= {TensorProto.FLOAT}, (signature.name, op_type)
        (product,) = [
            node for node in model.graph.node if node.input[1:2] == ["router.weight"]
        ] or [None] * (not signature.kind.is_mod)
        if product is not None:
            cast = next(node for node in model.graph.node if product.input[0] in node.output)
            assert cast.op_type == "Cast"


def test_the_embedding_table_has_the_bundles_precision(bundle_for, tiny_checkpoint):
    table = Checkpoint(tiny_checkpoint).tensor("model.embed_tokens.weight").float()
    stored = np.load(bundle_for("rtx", "fp16") / EMBEDDING_FILE)
    np.testing.assert_array_equal(stored, table.to(torch.float16).numpy())
    bits = np.load(bundle_for("rtx", "bf16") / EMBEDDING_FILE)
    assert bits.dtype == np.uint16
    np.testing.assert_array_equal(float32_of_bits(bits), table.to(torch.bfloat16).float().numpy())


def test_a_weight_too_large_for_its_precision_is_an_export_error():
    weight = torch.tensor([1.0, -70000.0])
    assert rounded("w", weight, torch.bfloat16).isfinite().all()
    with pytest.raises(ExportError, match=r"'w' has values up to 7e\+04, the largest of torch\.fl"):
        rounded("w", weight, torch.float16)


# ---- numbers ----


@every_bundle
def test_every_graph_was_checked_against_the_reference(bundle_for, target, precision):
    for graph in read_manifest(bundle_for(target, precision)).graphs.values():
        assert graph.parity["max_relative_error"] <= graph.parity["allowed"]
        assert graph.parity["allowed"] == ALLOWED_RELATIVE_ERROR[precision]


@pytest.mark.parametrize("shape", STEP_SHAPES)
@pytest.mark.parametrize("index", [0, 1], ids=["dense", "mod"])
@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_onnx_own_evaluator_agrees_with_onnxruntime(
    any_bundle, tiny_checkpoint, target, index, shape
):
    bundle = any_bundle(target, "fp32")
    config, lowering = read_config(bundle / CONFIG_FILE), lowering_of(target, "fp32")
    (signature,) = bundle_signatures(config, lowering, [index])[1:2]
    weights = list(graph_weights(Checkpoint(tiny_checkpoint), signature))
    dtypes = {name: torch.float32 for name, _ in weights}
    reference = reference_module(config, signature.kind, weights, dtypes)
    layout = step_layout(STEP_SHAPES[shape], config.frame_num_tokens, config.num_kept)
    inputs, _ = random_step(reference, config, signature, lowering, layout)
    path = str(bundle / signature.file)
    names = [spec.name for spec in signature.outputs]
    theirs = ReferenceEvaluator(onnx.load(path)).run(names, inputs)
    session = onnxruntime.InferenceSession(
        path, session_options(), providers=["CPUExecutionProvider"]
    )
    for name, a, b in zip(names, session.run(names, inputs), theirs, strict=True):
        assert a.dtype == b.dtype, name
        assert relative_errors(a, b, by_row=False).max(initial=0) <= EVALUATOR_ERROR, name


# ---- lowering ----


def test_only_tensorrts_fp32_graphs_are_marked_and_are_otherwise_the_same(bundle_for):
    marked, plain = (dict_of(bundle_for(target, "fp32")) for target in ("rtx", "cuda"))
    for name, model in marked.items():
        restored = without_decomposable(model)
        assert sorted(each_node(restored)) == sorted(each_node(plain[name]))
        with pytest.raises(ExportError, match="is already marked"):
            mark_attention_decomposable(model)


def dict_of(bundle):
    return {signature.name: model for signature, model in layers_of(bundle)}


def each_node(model):
    for node in model.graph.node:
        yield node.op_type, tuple(node.input), tuple(node.output), sorted(attributes(node))


def test_a_graph_without_attention_is_not_marked(bundle_for):
    head = onnx.load(str(bundle_for("cuda", "fp32") / "head.onnx"), load_external_data=False)
    with pytest.raises(ExportError, match="has no Attention to mark"):
        mark_attention_decomposable(head)


def test_a_widened_graph_has_the_same_nodes_and_the_rounded_weights(bundle_for, tmp_path):
    path = bundle_for("rtx", "bf16") / "layers/01.onnx"
    theirs, ours = onnx.load(str(path)), onnx.load(str(write_widened(path, tmp_path)))
    assert [node.op_type for node in ours.graph.node] == [
        node.op_type for node in theirs.graph.node
    ]
    for a, b in zip(ours.graph.initializer, theirs.graph.initializer, strict=True):
        assert a.name == b.name
        assert a.data_type != TensorProto.BFLOAT16
        wanted = numpy_helper.to_array(b)
        np.testing.assert_array_equal(
            numpy_helper.to_array(a),
            wanted.astype(np.float32) if b.data_type == TensorProto.BFLOAT16 else wanted,
        )
    types = {value.type.tensor_type.elem_type for value in ours.graph.input}
    assert TensorProto.BFLOAT16 not in types


def test_only_in_place_graphs_have_a_fixed_number_of_rows():
    with pytest.raises(ConfigError, match="target rtx is in_place and got capacity=None"):
        Lowering("rtx", "fp16")
    with pytest.raises(ConfigError, match="target cpu is delta and got capacity"):
        Lowering("cpu", "fp32", CAPACITY)
