"""The smallest graphs of quantized weights: products of one input and weights (out, in)."""

import onnx
from onnx import TensorProto, helper

from mod_edge.export.quantize import quantize_graph
from mod_edge.export.quantized_ops import OPS
from mod_edge.export.stored_tensor import ONNX_DTYPES, raw_array, stored
from mod_edge.model.weight_codes import weight_codes


def product(weight="weight", output="product", hidden="hidden"):
    """The MatMul that reads a weight."""
    return helper.make_node("MatMul", [hidden, weight], [output])


def traced(*readers, dims, dtype=TensorProto.FLOAT, opset=21):
    """A traced graph: `hidden` (1, T, in) and weights [in, out] are inputs, `readers` its nodes.

    Args:
        readers: the nodes; their outputs are the graph's.
        dims: (in, out) of every weight, by name.
        dtype: of all tensors, ONNX's.
        opset: of the graph.
    """
    value = helper.make_tensor_value_info
    num_in, num_out = next(iter(dims.values()))
    inputs = [value("hidden", dtype, [1, "T", num_in])]
    inputs += [value(name, dtype, shape) for name, shape in dims.items()]
    outputs = [value(node.output[0], dtype, [1, "T", num_out]) for node in readers]
    graph = helper.make_graph(list(readers), "planted", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def quantized(form, weights, *readers, opset=21):
    """The graph of `readers` (one product by default) with `weights` (out, in) in `form`.

    Scales and inputs have the weights' dtype. Without a form the weights stay as they are.
    """
    dtype = next(iter(weights.values())).dtype
    dims = {name: tuple(weight.T.shape) for name, weight in weights.items()}
    readers = readers or (product(),)
    whole = traced(*readers, dims=dims, dtype=ONNX_DTYPES[dtype], opset=opset)
    if form is None:
        del whole.graph.input[1:]
        tensors = [stored(name, weight.T) for name, weight in weights.items()]
    else:
        ops = OPS[form.op](form)
        whole = quantize_graph(whole, set(weights), ops)
        tensors = [
            held
            for name, weight in weights.items()
            for held in ops.tensors(name, weight_codes(name, weight, form, dtype))
        ]
    for held in tensors:
        raw = raw_array(held.values).tobytes()
        whole.graph.initializer.append(
            helper.make_tensor(held.name, held.data_type, held.dims, raw, raw=True)
        )
    onnx.checker.check_model(whole)
    return whole
