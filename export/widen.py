"""A bfloat16 graph converted to float32, because ONNX Runtime's CPU has no bfloat16 MatMul.

Weights keep their rounded values, so the copy proves nodes, wiring and weights, but not the error
of rounding intermediate results.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

BF16, FP32 = TensorProto.BFLOAT16, TensorProto.FLOAT


def write_widened(path: Path, folder: Path) -> Path:
    """Write the graph at `path`, and its weights, in float32 into `folder`; returns its path."""
    model = onnx.load(str(path), load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        tensor_type = value.type.tensor_type
        if tensor_type.elem_type == BF16:
            tensor_type.elem_type = FP32
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == BF16:
                attribute.i = FP32
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == BF16:
                attribute.t.CopyFrom(_float32_tensor(attribute.t))
    target = folder / path.name
    with target.with_suffix(".data").open("wb") as data:
        for tensor in model.graph.initializer:
            if tensor.data_location != TensorProto.EXTERNAL:
                if tensor.data_type == BF16:
                    tensor.CopyFrom(_float32_tensor(tensor))
                continue
            array = _external_array(tensor, path.parent)
            entries = {entry.key: entry for entry in tensor.external_data}
            entries["offset"].value = str(data.tell())
            entries["length"].value = str(array.nbytes)
            if tensor.data_type == BF16:
                tensor.data_type = FP32
            data.write(np.ascontiguousarray(array).data)
    target.write_bytes(model.SerializeToString())
    return target


def float32_of_bits(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 numbers given as uint16 bits: the upper half of each."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _external_array(tensor: TensorProto, folder: Path) -> np.ndarray:
    """An external tensor's values: bfloat16 as float32, all other dtypes as raw bytes."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    is_bf16 = tensor.data_type == BF16
    dtype = np.dtype(np.uint16 if is_bf16 else np.uint8)
    count = int(entries["length"]) // dtype.itemsize
    offset = int(entries["offset"])
    array = np.fromfile(folder / entries["location"], dtype, count, offset=offset)
    return float32_of_bits(array) if is_bf16 else array


def _float32_tensor(tensor: TensorProto) -> TensorProto:
    array = numpy_helper.to_array(tensor).astype(np.float32)
    return numpy_helper.from_array(array, tensor.name)
