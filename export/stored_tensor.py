"""Tensors as a graph's data file holds them: name, ONNX type, dims and bytes."""

from dataclasses import dataclass

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

ONNX_DTYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a graph.

    Attributes:
        name: of the initializer.
        data_type: ONNX's.
        dims: its shape.
        values: what is stored; 4-bit types have two values in a byte, so fewer values than `dims`.
    """

    name: str
    data_type: int
    dims: tuple[int, ...]
    values: Tensor

    def external(self, location: str, offset: int) -> TensorProto:
        """The initializer whose bytes are at `offset` in the file `location`."""
        proto = TensorProto(
            name=self.name,
            data_type=self.data_type,
            dims=self.dims,
            data_location=TensorProto.EXTERNAL,
        )
        entries = (("location", location), ("offset", offset), ("length", self.values.nbytes))
        for key, value in entries:
            proto.external_data.add(key=key, value=str(value))
        return proto


def stored(name: str, tensor: Tensor) -> StoredTensor:
    """`tensor` in its own dtype."""
    return StoredTensor(name, ONNX_DTYPES[tensor.dtype], tuple(tensor.shape), tensor)


def stored_int4(name: str, tensor: Tensor) -> StoredTensor:
    """int8 `tensor` of values from -8 to 7 as ONNX's INT4, two a byte."""
    nibbles = tensor.flatten().view(torch.uint8) & 0xF
    return StoredTensor(
        name, TensorProto.INT4, tuple(tensor.shape), packed_nibbles(nibbles[None])[0]
    )


def packed_nibbles(values: Tensor) -> Tensor:
    """uint8 `values` (rows, count) below 16, two a byte, the first in the lower half."""
    if values.shape[1] % 2:
        values = torch.nn.functional.pad(values, (0, 1))
    return values[:, 0::2] | (values[:, 1::2] << 4)


def raw_array(tensor: Tensor) -> np.ndarray:
    """The tensor as a numpy array; bfloat16, which numpy lacks, as uint16 bits."""
    tensor = tensor.contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
