"""The files of the tiny bundle's graphs: ops, weights, and what must not be in them."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo
from safetensors import safe_open

from mod_edge.bundle.manifest import EMBEDDING_FILE
from mod_edge.errors import ExportError
from mod_edge.export.trace import DATA_ALIGNMENT, write_graph
from mod_edge.model.presets import preset_config
from mod_edge.model.weight_files import WEIGHTS_FILE
from mod_edge.plan.graph_kind import DENSE, HEAD, MOD, VISION
from mod_edge.plan.signature import bundle_signatures
from mod_edge.plan.targets import CPU_FP32

pytestmark = pytest.mark.numeric

CONFIG = preset_config("tiny")
GRAPHS = bundle_signatures(CONFIG, CPU_FP32)
LAYERS = GRAPHS[1:-1]
MOD_LAYERS = [signature for signature in LAYERS if signature.kind.is_mod]
MAX_CONSTANT_SIZE = 4  # numbers of a shape; a folded weight has at least D

every_graph = pytest.mark.parametrize("signature", GRAPHS, ids=lambda graph: graph.name)
every_mod_layer = pytest.mark.parametrize("signature", MOD_LAYERS, ids=lambda graph: graph.name)


def model_of(bundle, signature):
    return onnx.load(str(bundle / signature.file), load_external_data=False)


def checkpoint_name(signature, name):
    """The checkpoint's name of the graph's weight `name`."""
    if signature.kind is HEAD:
        return {"norm.weight": "model.norm.weight"}.get(name, name)
    if signature.kind is VISION:
        return name
    return f"model.layers.{int(signature.name[-2:])}.{name}"


def tensors_of(checkpoint):
    with safe_open(checkpoint / WEIGHTS_FILE, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict


def is_linear(name):
    """Linear weights are the only ones that a graph holds transposed."""
    return name.endswith(("proj.weight", "fc1.weight", "fc2.weight")) or name in (
        "connector.0.weight",
        "connector.2.weight",
        "router.weight",
        "lm_head.weight",
    )


def strings_in(message):
    """Every string and byte string anywhere in a protobuf message except raw tensor data."""
    for field, value in message.ListFields():
        values = value if field.is_repeated else [value]
        if field.type == field.TYPE_MESSAGE:
            for inner in values:
                yield from strings_in(inner)
        elif field.type == field.TYPE_STRING:
            yield from values
        elif field.type == field.TYPE_BYTES and field.name != "raw_data":
            yield from (inner.decode() for inner in values)


# ---- ops ----


@every_mod_layer
def test_a_mod_layer_selects_gathers_and_scatters_in_the_graph(tiny_bundle, signature):
    nodes = model_of(tiny_bundle, signature).graph.node
    ops = Counter(node.op_type for node in nodes)
    assert ops["Gather"] >= 3  # hidden states and both angles
    assert ops["ScatterND"] == 1
    selections = [node for node in nodes if node.op_type == "TopK" and largest(node)]
    assert len(selections) == 1
    (count,) = constants(tiny_bundle, signature)[selections[0].input[1]]
    assert count == CONFIG.num_kept
    orderings = [node for node in nodes if node.op_type == "TopK" and not largest(node)]
    assert len(orderings) == 1  # by position, smallest first
    assert orderings[0].input[0] == selections[0].output[1]


def largest(node):
    return {attribute.name: attribute.i for attribute in node.attribute}.get("largest", 1)


def constants(bundle, signature):
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model_of(bundle, signature).graph.initializer
        if tensor.data_location != TensorProto.EXTERNAL
    }


@every_graph
def test_no_graph_has_control_flow_functions_or_foreign_ops(tiny_bundle, signature):
    model = model_of(tiny_bundle, signature)
    assert not {node.op_type for node in model.graph.node} & {"Loop", "If", "Scan"}
    assert not any(
        attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        for node in model.graph.node
        for attribute in node.attribute
    )
    assert not model.functions
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]


# ---- weights ----


@every_graph
def test_every_weight_occurs_once_under_its_own_name_with_its_own_values(
    tiny_bundle, tiny_checkpoint, signature
):
    theirs = tensors_of(tiny_checkpoint)
    path = tiny_bundle / signature.file
    model = onnx.load(str(path))
    names = [
        tensor.name
        for tensor in model_of(tiny_bundle, signature).graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    ]
    assert sorted(names) == sorted(set(names))
    wanted = {name for name in theirs if name.startswith(prefixes(signature))}
    assert {checkpoint_name(signature, name) for name in names} == wanted
    uses = Counter(name for node in model.graph.node for name in node.input)
    for tensor in model.graph.initializer:
        if tensor.name not in names:
            continue
        value = theirs[checkpoint_name(signature, tensor.name)]
        value = value.T if is_linear(tensor.name) else value
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), value, tensor.name)
        assert uses[tensor.name] == 1, tensor.name


def prefixes(signature):
    return {
        "vision": ("vision_model.", "connector."),
        "head": ("model.norm.", "lm_head."),
    }.get(signature.kind.name, (f"model.layers.{signature.name[-2:].lstrip('0') or '0'}.",))


def test_the_bundle_holds_every_tensor_of_the_checkpoint(tiny_bundle, tiny_checkpoint):
    theirs = tensors_of(tiny_checkpoint)
    found = Counter(
        checkpoint_name(signature, tensor.name)
        for signature in GRAPHS
        for tensor in model_of(tiny_bundle, signature).graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    )
    assert found + Counter(["model.embed_tokens.weight"]) == Counter(theirs.keys())
    table = np.load(tiny_bundle / EMBEDDING_FILE)
    np.testing.assert_array_equal(table, theirs["model.embed_tokens.weight"])


@every_graph
def test_no_weight_is_folded_into_a_constant(tiny_bundle, signature):
    for name, array in constants(tiny_bundle, signature).items():
        is_pooling = signature.kind is VISION and np.allclose(array.sum(axis=-1), 1)
        assert array.size <= MAX_CONSTANT_SIZE or is_pooling, name
    assert "Constant" not in {node.op_type for node in model_of(tiny_bundle, signature).graph.node}


@every_graph
def test_weights_start_on_page_boundaries_of_one_data_file(tiny_bundle, signature):
    path = tiny_bundle / signature.file
    size = path.with_suffix(".data").stat().st_size
    for tensor in model_of(tiny_bundle, signature).graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            info = ExternalDataInfo(tensor)
            assert info.location == path.with_suffix(".data").name
            assert info.offset % DATA_ALIGNMENT == 0
            assert info.offset + info.length <= size


# ---- what must not be in them ----


@every_graph
def test_no_graph_contains_paths_or_source_lines(tiny_bundle, signature):
    model = model_of(tiny_bundle, signature)
    for text in strings_in(model):
        assert "/" not in text
        assert "\\" not in text
        assert ".py" not in text
        assert "\n" not in text
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


def test_all_layers_of_a_kind_have_the_same_nodes(tiny_bundle):
    for kind in (DENSE, MOD):
        graphs = [
            model_of(tiny_bundle, signature).graph for signature in LAYERS if signature.kind is kind
        ]
        assert len({b"".join(map(bytes_of, graph.node)) for graph in graphs}) == 1


def bytes_of(node):
    return node.SerializeToString(deterministic=True)


# ---- writing ----


@pytest.fixture
def head_weights():
    size, vocabulary = CONFIG.text_config.hidden_size, CONFIG.text_config.vocab_size
    return {"norm.weight": torch.ones(size), "lm_head.weight": torch.ones(vocabulary, size)}


def test_a_missing_weight_is_an_export_error(tiny_topologies, head_weights, tmp_path):
    del head_weights["norm.weight"]
    with pytest.raises(ExportError, match=r"head\.onnx: no weights for norm\.weight"):
        write_graph(tiny_topologies[HEAD], head_weights.items(), tmp_path / "head.onnx")
    assert not (tmp_path / "head.onnx").exists()


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("norm.bias", (1,), r"'norm\.bias' is unknown or given twice"),
        ("norm.weight", (96,), r"'norm\.weight' is unknown or given twice"),
        ("lm_head.weight", (96, 512), r"is \(512, 96\), wanted \(96, 512\)"),
    ],
    ids=["unknown", "given twice", "of another shape"],
)
def test_a_wrong_weight_is_an_export_error(
    tiny_topologies, head_weights, tmp_path, name, shape, says
):
    weights = [("norm.weight", head_weights["norm.weight"]), (name, torch.ones(shape))]
    with pytest.raises(ExportError, match=says):
        write_graph(tiny_topologies[HEAD], weights, tmp_path / "head.onnx")


def test_half_precision_weights_are_written_as_float32(tiny_topologies, head_weights, tmp_path):
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in head_weights.items()}
    write_graph(tiny_topologies[HEAD], halves.items(), tmp_path / "head.onnx")
    for tensor in onnx.load(str(tmp_path / "head.onnx")).graph.initializer:
        if tensor.name in head_weights:
            assert numpy_helper.to_array(tensor).dtype == np.float32
