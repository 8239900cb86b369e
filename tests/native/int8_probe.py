"""Writes the graph with which `mod_edge.native.int8_products` tries a CPU.

python -m tests.native.int8_probe
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mod_edge.native import int8_products
from mod_edge.native.int8_products import NUM_INPUTS, NUM_OUTPUTS, PROBE_FILE

PATH = Path(int8_products.__file__).with_name(PROBE_FILE)


def int8_probe() -> onnx.ModelProto:
    """uint8 `codes` [rows, inputs] by stored int8 weights; int32 `products` [rows, outputs]."""
    weights = np.full((NUM_INPUTS, NUM_OUTPUTS), -127, np.int8)
    weights[:, ::2] = 127
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["codes", "weights"], ["products"])],
        "int8_probe",
        [helper.make_tensor_value_info("codes", TensorProto.UINT8, ["rows", NUM_INPUTS])],
        [helper.make_tensor_value_info("products", TensorProto.INT32, ["rows", NUM_OUTPUTS])],
        [numpy_helper.from_array(weights, "weights")],
    )
    # Versions that every supported onnxruntime reads.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


if __name__ == "__main__":
    PATH.write_bytes(int8_probe().SerializeToString())
