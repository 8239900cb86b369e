"""The dtypes in which a graph's nodes compute."""

import onnx


def dtype_of_inputs(model, op_type):
    """Element types of the first input of every node of a type, by onnx's own inference."""
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (
            *inferred.graph.value_info,
            *inferred.graph.input,
            *inferred.graph.output,
        )
    }
    types |= {tensor.name: tensor.data_type for tensor in inferred.graph.initializer}
    return {types[node.input[0]] for node in inferred.graph.node if node.op_type == op_type}
