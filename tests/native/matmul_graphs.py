"""Writes the graphs with which `mod_edge.native.matmul_rates` measures a CPU.

python -m tests.native.matmul_graphs
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mod_edge.native import matmul_rates
from mod_edge.native.matmul_rates import FLOAT_FILE, INT8_FILE, WEIGHT_SIDE

FOLDER = Path(matmul_rates.__file__).parent


def matmul_graph(op: str, rows: int, weight: int, products: int) -> onnx.ModelProto:
    """`rows` [count, side] by a weight of ones; the dtypes are those of `TensorProto`."""
    ones = helper.make_tensor("ones", weight, [1], [1])
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["weight"], value=ones),
            helper.make_node(op, ["rows", "weight"], ["products"]),
        ],
        op,
        [helper.make_tensor_value_info("rows", rows, ["count", WEIGHT_SIDE])],
        [helper.make_tensor_value_info("products", products, ["count", WEIGHT_SIDE])],
        [numpy_helper.from_array(np.array([WEIGHT_SIDE, WEIGHT_SIDE]), "shape")],
    )
    # Versions that every supported onnxruntime reads.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


GRAPHS = {
    FLOAT_FILE: ("MatMul", TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT),
    INT8_FILE: ("MatMulInteger", TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32),
}

if __name__ == "__main__":
    for name, arguments in GRAPHS.items():
        (FOLDER / name).write_bytes(matmul_graph(*arguments).SerializeToString())
