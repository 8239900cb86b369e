"""The `tensorrt-delta` graphs against the documented ops and types of TensorRT 10.3."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mod_edge.bundle.manifest import CONFIG_FILE, read_manifest
from mod_edge.config import read_config
from mod_edge.errors import ExportError
from mod_edge.export.check import relative_errors
from mod_edge.export.lower import lower, read_sizes_after_casts
from mod_edge.native.onnx_session import session_options
from mod_edge.plan.signature import bundle_signatures
from mod_edge.plan.targets import TARGETS, Lowering
from tests.export.tensorrt_10_3 import CONSTANT_INPUTS, MAX_TOPK, NEWEST_OPSET, TYPES
from tests.export.test_check import HEALTHY_ERROR

PRECISIONS = ["fp16"]


def graphs_of(bundle):
    """Every graph of the bundle by name, with the types of all tensors inferred."""
    config, lowering = read_config(bundle / CONFIG_FILE), read_manifest(bundle).lowering
    return {
        signature.name: onnx.shape_inference.infer_shapes(
            onnx.load(str(bundle / signature.file), load_external_data=False),
            check_type=True,
            strict_mode=True,
        )
        for signature in bundle_signatures(config, lowering)
    }


def faults_of(model):
    """Everything in the graph that TensorRT 10.3 does not parse."""
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    tensors = {value.name: value.type.tensor_type for value in values}
    types = {name: tensor.elem_type for name, tensor in tensors.items()}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    initializers = {tensor.name for tensor in model.graph.initializer}
    faults = {
        f"opset {entry.version}"
        for entry in model.opset_import
        if entry.domain or entry.version > NEWEST_OPSET
    }
    for node in model.graph.node:
        if node.op_type not in TYPES or node.domain:
            faults.add(f"{node.domain}{node.op_type} is not supported")
            continue
        for name in data_inputs(node):
            dtype = TensorProto.DataType.Name(types[name])
            if dtype not in TYPES[node.op_type]:
                faults.add(f"{node.op_type} does not take {dtype}")
        place, name = CONSTANT_INPUTS.get(node.op_type, (0, ""))
        if name and len(node.input) > place and node.input[place] not in initializers:
            faults.add(f"{node.op_type}: {name} is not an initializer")
        faults.update(attribute_faults(node, tensors))
    return sorted(faults)


def data_inputs(node):
    """The inputs that have the type of the op's data, unlike indices, sizes and conditions."""
    if node.op_type in {"Add", "Concat", "Conv", "Div", "Less", "MatMul", "Mul", "Pow", "Sub"}:
        return node.input
    if node.op_type == "Where":
        return node.input[1:]
    return node.input[:1]


def attribute_faults(node, tensors):
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type == "TopK":
        if not attributes.get("sorted", 1):
            yield "TopK does not sort"
        # K may be read from a shape, but is at most the axis's size.
        shape = tensors[node.input[0]].shape.dim
        if not 1 <= shape[attributes.get("axis", -1)].dim_value <= MAX_TOPK:
            yield "TopK may have a K that is too large"
    if node.op_type == "ScatterND" and attributes.get("reduction", b"none") != b"none":
        yield "ScatterND reduces"


@pytest.fixture(params=PRECISIONS)
def graphs(request, bundle_for):
    return graphs_of(bundle_for("tensorrt-delta", request.param))


def test_tensorrt_10_3_supports_every_op_and_type_of_every_graph(graphs):
    faults = {name: faults_of(model) for name, model in graphs.items()}
    assert not any(faults.values()), faults
    assert len(faults) == 9


def test_tensorrt_10_3_supports_the_targets_opset():
    assert TARGETS["tensorrt-delta"].opset <= NEWEST_OPSET
    assert TARGETS["tensorrt"].opset > NEWEST_OPSET


def test_tensorrt_10_3_does_not_support_the_other_dialect(bundle_for):
    graphs = graphs_of(bundle_for("rtx", "fp16"))
    assert "opset 24" in faults_of(graphs["layer-00"])
    assert "TensorScatter is not supported" in faults_of(graphs["layer-00"])
    assert "Attention is not supported" in faults_of(graphs["layer-01"])


# ---- uint8 goes into Cast alone ----


def exported_vision(tiny_bundle):
    """The vision graph as traced, and its path."""
    path = tiny_bundle / "vision.onnx"
    return onnx.load(str(path), load_external_data=False), path


def readers(model):
    return sorted(node.op_type for node in model.graph.node if "frames" in node.input)


def test_sizes_are_read_after_the_cast_and_the_numbers_stay(tiny_bundle):
    model, path = exported_vision(tiny_bundle)
    assert readers(model) == ["Cast", "Shape"]
    assert "Shape does not take UINT8" in faults_of(onnx.shape_inference.infer_shapes(model))
    lowered = read_sizes_after_casts(model)
    assert readers(lowered) == ["Cast"]
    lowered_path = path.with_name("lowered.onnx")
    lowered_path.write_bytes(lowered.SerializeToString())
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    theirs, ours = (
        onnxruntime.InferenceSession(str(file), session_options()).run(None, {"frames": frames})[0]
        for file in (path, lowered_path)
    )
    lowered_path.unlink()
    # ONNX Runtime may fuse the two graphs differently. Measured 0.
    assert relative_errors(ours, theirs, by_row=False).max() <= HEALTHY_ERROR


def test_only_graphs_for_compilers_read_sizes_after_the_cast(tiny_bundle):
    model, _ = exported_vision(tiny_bundle)
    assert lower(model, Lowering("cpu", "fp32")) is model
    assert readers(lower(model, Lowering("tensorrt-delta", "fp32"))) == ["Cast"]


def test_uint8_that_another_op_reads_is_an_error(tiny_bundle):
    model, _ = exported_vision(tiny_bundle)
    model.graph.node.append(helper.make_node("Flatten", ["frames"], ["flat"]))
    with pytest.raises(ExportError, match="frames is read by Cast, Flatten, Shape; wanted"):
        read_sizes_after_casts(model)
