"""Passes over a traced graph for what a target's compiler requires beyond the dialect.

All lowering happens here, at export: building an engine needs the compiler alone. Each pass states
the graph before and after, and raises where the graph is not as expected.
"""

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from mod_edge.errors import ExportError
from mod_edge.plan.targets import TARGETS, Lowering

DECOMPOSABLE = "TRT_decomposable"
UINT8 = onnx.TensorProto.UINT8
READERS = ("Cast", "Shape")  # of an image's bytes, in the graphs that the exporter makes


def lower(proto: onnx.ModelProto, lowering: Lowering) -> onnx.ModelProto:
    """`proto` as the target's compiler requires it; `proto` itself where it needs no pass.

    Raises:
        ExportError: a pass did not find what it expects.
    """
    if not TARGETS[lowering.target].compiler:
        return proto
    has_attention = any(node.op_type == "Attention" for node in proto.graph.node)
    if has_attention and lowering.precision == "fp32":
        return mark_attention_decomposable(proto)
    if any(value.type.tensor_type.elem_type == UINT8 for value in proto.graph.input):
        return read_sizes_after_casts(proto)
    return proto


def lower_file(path: Path, lowering: Lowering) -> None:
    """Lower the graph at `path` in place; its weights stay in their file.

    Raises:
        ExportError: a pass did not find what it expects.
    """
    proto = onnx.load(str(path), load_external_data=False)
    lowered = lower(proto, lowering)
    if lowered is not proto:
        path.write_bytes(lowered.SerializeToString())


def mark_attention_decomposable(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Allow TensorRT to decompose Attention, for which it has no fused float32 kernel.

    Before: no Attention has the attribute. After: each has it. ONNX Runtime rejects such a graph,
    see `without_decomposable`.
    """
    graph = _imported(proto)
    attentions = [node for node in graph.nodes if node.op == "Attention"]
    if not attentions:
        raise ExportError(f"{proto.graph.name} has no Attention to mark")
    for node in attentions:
        if DECOMPOSABLE in node.attrs:
            raise ExportError(f"{proto.graph.name}: {node.name} is already marked")
        node.attrs[DECOMPOSABLE] = 1
    return _exported(graph, proto)


def read_sizes_after_casts(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Make the vision graph readable for TensorRT 10.3, where only Cast takes uint8 inputs.

    The exporter reads sizes with Shape from the uint8 input itself, which TensorRT's Shape layer
    does not take (its operator documentation; TensorRT-RTX does).

    Before: one Cast and any number of Shape nodes read each uint8 input. After: the Cast alone.
    """
    graph = _imported(proto)
    for tensor in graph.inputs:
        if tensor.dtype != np.uint8:
            continue
        readers = {op: [node for node in tensor.outputs if node.op == op] for op in READERS}
        if len(readers["Cast"]) != 1 or sum(map(len, readers.values())) != len(tensor.outputs):
            found = ", ".join(sorted(node.op for node in tensor.outputs))
            raise ExportError(
                f"{proto.graph.name}: {tensor.name} is read by {found}; wanted one Cast and Shape"
            )
        for node in readers["Shape"]:
            node.inputs[0] = readers["Cast"][0].outputs[0]
    return _exported(graph.toposort(), proto)


def without_decomposable(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph without the attribute, as ONNX Runtime and onnx's own tools can read it."""
    proto_copy = onnx.ModelProto()
    proto_copy.CopyFrom(proto)
    for node in proto_copy.graph.node:
        kept = [attribute for attribute in node.attribute if attribute.name != DECOMPOSABLE]
        del node.attribute[:]
        node.attribute.extend(kept)
    return proto_copy


def _imported(proto: onnx.ModelProto) -> gs.Graph:
    """The graph, imported without graphsurgeon's log lines, which would go to stdout."""
    severity, G_LOGGER.severity = G_LOGGER.severity, G_LOGGER.ERROR
    try:
        return gs.import_onnx(proto)
    finally:
        G_LOGGER.severity = severity


def _exported(graph: gs.Graph, before: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as a model, with the inputs and outputs of `before`."""
    after: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    for values, wanted in (
        (after.graph.input, before.graph.input),
        (after.graph.output, before.graph.output),
    ):
        if [value.name for value in values] != [value.name for value in wanted]:
            raise ExportError(f"{before.graph.name}: a pass changed inputs or outputs")
    return after
