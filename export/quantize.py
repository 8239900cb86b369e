"""Quantized weights in a traced graph.

A traced graph has its weights as inputs (`trace`). For every quantized weight, the one MatMul that
reads it is replaced by the ops of a weight form (`quantized_ops`).
"""

from collections.abc import Set

import onnx
from onnx import NodeProto, helper

from mod_edge.errors import ExportError
from mod_edge.export.quantized_ops import QuantizedOps


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


def _set_nodes(graph: onnx.GraphProto, nodes: list[NodeProto]) -> None:
    """Replace the graph's nodes."""
    del graph.node[:]
    graph.node.extend(nodes)
