"""Quantized weights in a traced graph, and the same graph for CPUs without exact u8 x s8 products.

A traced graph has its weights as inputs (`trace`). For every quantized weight, the one MatMul that
reads it is replaced by the ops of a weight form (`quantized_ops`).
"""

from collections.abc import Set

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mod_edge.errors import ExportError
from mod_edge.export.quantized_ops import QuantizedOps

SIGN_BIT = "sign_bit"


def quantize_graph(proto: onnx.ModelProto, weights: Set[str], ops: QuantizedOps) -> onnx.ModelProto:
    """A copy of `proto` in which `ops` multiply with these weights, which are no longer inputs.

    Args:
        proto: a traced graph; the weights are among its inputs, as [in, out].
        weights: names of those to quantize.
        ops: of the weights' form, new for this graph.

    Raises:
        ExportError: a weight is not read by exactly one MatMul, as its second input.
    """
    quantized = onnx.ModelProto()
    quantized.CopyFrom(proto)
    graph = quantized.graph
    dims = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in graph.input
    }
    unread = set(weights)
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in unread:
            hidden, weight = node.input
            unread.remove(weight)
            nodes += ops.product(hidden, weight, dims[weight], node.output[0])
        else:
            nodes.append(node)
    _set_nodes(graph, nodes)
    for value in [value for value in graph.input if value.name in weights]:
        graph.input.remove(value)
    still_read = weights & {name for node in nodes for name in node.input}
    if unread or still_read:
        names = ", ".join(sorted(unread | still_read))
        raise ExportError(f"{graph.name}: wanted one MatMul that reads each of {names}")
    graph.initializer.extend(ops.constants.values())
    if ops.domain and all(each.domain != ops.domain for each in quantized.opset_import):
        quantized.opset_import.append(helper.make_opsetid(ops.domain, 1))
    return quantized


def unsigned_graph(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `proto` whose MatMulIntegers multiply u8 by u8, over the same weights file.

    On x86 without VNNI, onnxruntime's u8 x s8 products saturate silently; u8 x u8 are exact but
    slower. An int8 with its sign bit flipped is a uint8 that is larger by 128, the zero point that
    MatMulInteger then subtracts. The flip is folded when the graph is loaded.

    Before: each MatMulInteger reads int8 codes. After: uint8 ones, with a zero point of 128.
    """
    unsigned = onnx.ModelProto()
    unsigned.CopyFrom(proto)
    graph = unsigned.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            hidden, codes = node.input
            if stored[codes].data_type != TensorProto.INT8:
                raise ExportError(f"{graph.name}: {codes} is not int8")
            stored[codes].data_type = TensorProto.UINT8
            flipped = f"{codes}.unsigned"
            nodes.append(helper.make_node("BitwiseXor", [codes, SIGN_BIT], [flipped]))
            node = helper.make_node(
                "MatMulInteger", [hidden, flipped, "", SIGN_BIT], list(node.output)
            )
        nodes.append(node)
    _set_nodes(graph, nodes)
    graph.initializer.append(numpy_helper.from_array(np.array(128, np.uint8), SIGN_BIT))
    return unsigned


def _set_nodes(graph: onnx.GraphProto, nodes: list[NodeProto]) -> None:
    """Replace the graph's nodes."""
    del graph.node[:]
    graph.node.extend(nodes)
