"""Tensors as files hold them: judged by onnx's own reader and its packing of 4-bit types."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from mod_edge.export.stored_tensor import packed_nibbles, raw_array, stored, stored_int4

SHAPES = [(4, 6), (3, 5), (7,), (1, 1), (2, 32, 3)]


def as_read_by_onnx(held, tmp_path):
    """The array that onnx reads from the tensor's bytes in an external file, with its dtype."""
    offset = 13
    (tmp_path / "weights.data").write_bytes(b"x" * offset + raw_array(held.values).tobytes())
    proto = held.external("weights.data", offset)
    onnx.external_data_helper.load_external_data_for_tensor(proto, str(tmp_path))
    assert (proto.name, list(proto.dims)) == (held.name, list(held.dims))
    return numpy_helper.to_array(proto)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int4_is_read_back_by_onnx(shape, tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randint(-8, 8, shape, generator=generator, dtype=torch.int8)
    held = stored_int4("codes", tensor)
    assert held.data_type == TensorProto.INT4
    assert held.values.numel() == (tensor.numel() + 1) // 2
    read = as_read_by_onnx(held, tmp_path)
    assert read.dtype.name == "int4"
    assert np.array_equal(read.astype(np.int8), tensor.numpy())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int4_bytes_are_those_that_onnx_packs(shape):
    generator = torch.Generator().manual_seed(1)
    tensor = torch.randint(-8, 8, shape, generator=generator, dtype=torch.int8)
    theirs = onnx.helper.make_tensor("codes", TensorProto.INT4, shape, tensor.flatten().tolist())
    packed = theirs.raw_data or bytes(value & 0xFF for value in theirs.int32_data)
    assert stored_int4("codes", tensor).values.numpy().tobytes() == packed


def test_a_transposed_int4_tensor_is_stored_as_it_is_indexed(tmp_path):
    tensor = torch.arange(-7, 5, dtype=torch.int8).reshape(3, 4)
    read = as_read_by_onnx(stored_int4("codes", tensor.T), tmp_path)
    assert np.array_equal(read.astype(np.int8), tensor.numpy().T)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8], ids=str
)
def test_other_dtypes_are_read_back_by_onnx(dtype, tmp_path):
    tensor = torch.arange(-6 if dtype != torch.uint8 else 0, 9).reshape(3, -1).to(dtype)
    held = stored("weight", tensor.T)
    read = as_read_by_onnx(held, tmp_path)
    assert np.array_equal(read.astype(np.float32), tensor.T.float().numpy())


def test_the_first_of_two_nibbles_is_in_the_lower_half():
    values = torch.tensor([[1, 2, 15], [0, 3, 9]], dtype=torch.uint8)
    assert packed_nibbles(values).tolist() == [[0x21, 0x0F], [0x30, 0x09]]
