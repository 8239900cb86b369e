"""Weights as integer codes with scales, tensor by tensor, in every weight form.

The exporter stores these codes; the quantized reference (`model.quantized`) computes with their
dequantized values. Both get them from here, so a graph is judged by its arithmetic, and what
quantizing itself costs is measured against the original weights.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mod_edge.errors import ExportError
from mod_edge.plan.weight_forms import (
    K_QUANT,
    ROUND_TO_NEAREST,
    SMALLEST_SCALE,
    SYMMETRIC_SEARCH,
    WeightForm,
)

# Rows of a weight that are quantized at once: k-quant needs about 12 float32 copies of them.
CHUNK_VALUES = 2**22
# The symmetric search lets a block's largest value fall on codes from 2 below to 2 above the range.
# Twice as many steps lower the weighted error of SmolLM2's layers by 0.1 %, a fourth raises it 5 %.
SEARCH_REACH, SEARCH_STEPS = 2, 11


@dataclass(frozen=True)
class WeightCodes:
    """A quantized weight; `values` gives code minus zero point, times scale.

    Attributes:
        codes: (out, in), int8 if symmetric, else uint8.
        scales: (out, blocks) in the graph's dtype; one block without a block size.
        zero_points: (out, blocks) uint8; None if symmetric.
    """

    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None = None

    def values(self) -> Tensor:
        """The dequantized weight (out, in) in float32."""
        values = self.codes.to(torch.float32)
        blocks = values.unflatten(1, (self.scales.shape[1], -1))  # a view: no copy of a large head
        if self.zero_points is not None:
            blocks -= self.zero_points[..., None]
        blocks *= self.scales[..., None]
        return values


def weight_codes(
    name: str, weight: Tensor, form: WeightForm, dtype: torch.dtype = torch.float32
) -> WeightCodes:
    """A linear layer's weight (out, in) in `form`.

    Args:
        name: of the weight, for messages.
        weight: as in the checkpoint.
        form: how to quantize it.
        dtype: of the scales: the graph's.

    Raises:
        ExportError: the block size does not divide the number of inputs.
    """
    num_in = weight.shape[1]
    if form.block is not None and num_in % form.block:
        raise ExportError(
            f"weight {name!r} has {num_in} inputs, which the block size {form.block} of "
            f"{form.bits}-bit weights does not divide; export with other --weights"
        )
    rows = max(1, CHUNK_VALUES // num_in)
    # Filled in place: a list of a large head's codes to join would be a second copy.
    codes = torch.empty(weight.shape, dtype=torch.uint8 if form.has_zero_points else torch.int8)
    scales: list[Tensor] = []
    zero_points: list[Tensor] = []
    # By output channel, each quantized alone.
    for part, chunk in zip(codes.split(rows), weight.split(rows), strict=True):
        quantized = METHODS[form.method](chunk.to(torch.float32), form, dtype)
        part.copy_(quantized.codes)
        scales.append(quantized.scales)
        if quantized.zero_points is not None:
            zero_points.append(quantized.zero_points)
    return WeightCodes(codes, torch.cat(scales), torch.cat(zero_points) if zero_points else None)


def _spanned(weight: Tensor, form: WeightForm, dtype: torch.dtype) -> WeightCodes:
    """Codes from the least to the largest value of each block and 0, which is always a code."""
    largest = 2**form.bits - 1
    blocks = weight.unflatten(1, (-1, form.block or weight.shape[1]))
    lowest, highest = blocks.amin(2).clamp_max(0), blocks.amax(2).clamp_min(0)
    scales = ((highest - lowest) / largest).clamp_min(SMALLEST_SCALE).to(dtype)
    steps = scales.to(torch.float32)
    zero_points = (-lowest / steps).round().clamp(0, largest)
    codes = (blocks / steps[..., None] + zero_points[..., None]).round().clamp(0, largest)
    return WeightCodes(codes.to(torch.uint8).flatten(1), scales, zero_points.to(torch.uint8))


def _rounded(weight: Tensor, form: WeightForm, dtype: torch.dtype) -> WeightCodes:
    """Symmetric codes: the largest value of a block is the largest code."""
    largest = 2 ** (form.bits - 1) - 1
    blocks = weight.unflatten(1, (-1, form.block or weight.shape[1]))
    scales = (blocks.abs().amax(2) / largest).clamp_min(SMALLEST_SCALE).to(dtype)
    codes = (blocks / scales.to(torch.float32)[..., None]).round().clamp(-largest, largest)
    return WeightCodes(codes.to(torch.int8).flatten(1), scales)


def _searched(weight: Tensor, form: WeightForm, dtype: torch.dtype) -> WeightCodes:
    """Symmetric codes, and for every block the scale of the least error, among those tried.

    k-quant without a zero point: errors count by the size of their weight plus the block's root
    mean square. Scales are positive, as TensorRT wants them.
    """
    middle = 2 ** (form.bits - 1)
    lowest, highest = -middle, middle - 1
    blocks = weight.unflatten(1, (-1, form.block or weight.shape[1]))
    importance = blocks.abs() + blocks.square().mean(2, keepdim=True).sqrt()
    largest = blocks.abs().amax(2, keepdim=True)
    best = largest
    least_error = torch.full_like(largest, torch.inf)
    for code in torch.linspace(middle - SEARCH_REACH, middle + SEARCH_REACH, SEARCH_STEPS):
        codes = (blocks / (largest / code).clamp_min(SMALLEST_SCALE)).round()
        codes = codes.clamp(lowest, highest)
        weighted = importance * codes
        # Least squares: the best scale for these codes.
        products, squares = ((weighted * each).sum(2, keepdim=True) for each in (blocks, codes))
        scales = (products / squares).nan_to_num().clamp_min(SMALLEST_SCALE)  # 0 / 0: all zeros
        error = (importance * (codes * scales - blocks).square()).sum(2, keepdim=True)
        best = torch.where(error < least_error, scales, best)
        least_error = torch.minimum(error, least_error)
    scales = best.to(dtype)
    codes = (blocks / scales.to(torch.float32)).round().clamp(lowest, highest)
    return WeightCodes(codes.to(torch.int8).flatten(1), scales[..., 0])


def _k_quant(weight: Tensor, form: WeightForm, dtype: torch.dtype) -> WeightCodes:
    """ONNX Runtime's k-quant: scale and zero point of every block searched for the least error.

    Its search assumes values on both sides of 0: a block from 1.0 to 1.1 becomes 0.1, one of 0.02
    alone becomes 0. Such blocks take the codes of `_spanned`.
    """
    # Late: it imports all of onnxruntime's quantization tools.
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    assert form.block is not None
    shape = (len(weight), weight.shape[1] // form.block)
    with np.errstate(divide="ignore", invalid="ignore"):  # of blocks with equal values
        codes, scales, zero_points = quant_tensor_k_quant_cpu(
            weight.numpy(), num_bits=form.bits, group_size=form.block
        )
    searched = WeightCodes(
        torch.from_numpy(codes.astype(np.uint8)).reshape(weight.shape),
        torch.from_numpy(scales.astype(np.float32)).reshape(shape).to(dtype),
        torch.from_numpy(zero_points).reshape(shape),
    )
    blocks = weight.unflatten(1, (-1, form.block))
    is_one_sided = (blocks.amin(2) >= 0) | (blocks.amax(2) <= 0)  # (out, blocks)
    spanned = _spanned(weight, form, dtype)
    assert searched.zero_points is not None
    assert spanned.zero_points is not None
    return WeightCodes(
        torch.where(is_one_sided.repeat_interleave(form.block, 1), spanned.codes, searched.codes),
        torch.where(is_one_sided, spanned.scales, searched.scales),
        torch.where(is_one_sided, spanned.zero_points, searched.zero_points),
    )


METHODS = {ROUND_TO_NEAREST: _rounded, SYMMETRIC_SEARCH: _searched, K_QUANT: _k_quant}
