"""The quantized reference: plain PyTorch with dequantized weights and rounded activations.

A quantized graph is judged twice: against this, which leaves the graph's own arithmetic error, and
against the reference with the original weights, which adds what quantizing costs.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mod_edge.config import EMBEDDING_WEIGHT
from mod_edge.model.video_llm import VideoLLM
from mod_edge.model.weight_codes import weight_codes
from mod_edge.plan.graph_kind import DENSE, HEAD, LAYER_PREFIX
from mod_edge.plan.targets import Lowering
from mod_edge.plan.weight_forms import (
    EMBEDDING_INT8,
    S8_BLOCKS,
    SMALLEST_SCALE,
    U8_ROWS,
    WeightForm,
    is_quantized,
)

Rounding = Callable[[Tensor], Tensor]
LAYERS = LAYER_PREFIX.partition("{")[0]
U8_STEPS, S8_STEPS = 255, 127


def quantized_linears(module: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a reference module that are quantized, by path: all but routers."""
    return {
        path: part
        for path, part in module.named_modules()
        if isinstance(part, nn.Linear) and is_quantized(f"{path}.weight")
    }


def quantize_model(model: VideoLLM, lowering: Lowering) -> VideoLLM:
    """`model` itself, a float32 reference, quantized as a bundle of this lowering is.

    A tied head is then no longer the embedding: the two have different forms.
    """
    if not lowering.is_quantized:
        return model
    dtype: torch.dtype = getattr(torch, lowering.dtype)
    for path, part in quantized_linears(model).items():
        form = lowering.weight_form(DENSE if path.startswith(LAYERS) else HEAD)
        assert form is not None
        codes = weight_codes(f"{path}.weight", part.weight, form, dtype)
        quantized = RoundingLinear(part, rounding_of(f"{path}.weight", part.in_features, form))
        quantized.weight = _fixed(codes.values())
        model.set_submodule(path, quantized)
    table = model.model.embed_tokens
    table.weight = _fixed(weight_codes(EMBEDDING_WEIGHT, table.weight, EMBEDDING_INT8).values())
    return model


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def round_activations(module: nn.Module, form: WeightForm) -> nn.Module:
    """`module` itself, its quantized linear layers rounding their inputs as `form` does."""
    for path, part in quantized_linears(module).items():
        rounding = rounding_of(f"{path}.weight", part.in_features, form)
        module.set_submodule(path, RoundingLinear(part, rounding))
    return module


class RoundingLinear(nn.Linear):
    """A linear layer that rounds its input first; it shares the other one's parameters."""

    def __init__(self, other: nn.Linear, rounding: Rounding) -> None:
        with torch.device("meta"):
            super().__init__(other.in_features, other.out_features, other.bias is not None)
        self.weight, self.bias = other.weight, other.bias
        self.rounding = rounding

    def forward(self, hidden: Tensor) -> Tensor:
        """`hidden` (..., in) rounded, times the weight."""
        return linear(self.rounding(hidden), self.weight, self.bias)


def rounding_of(weight: str, num_in: int, form: WeightForm) -> Rounding:
    """How the op that multiplies with a weight of that name and form rounds its input."""
    if form.activations == U8_ROWS:
        return partial(rows_as_u8, parts=form.parts_of(weight, num_in))
    if form.activations == S8_BLOCKS:
        return partial(blocks_as_s8, block=form.block or num_in)
    return unrounded


def rows_as_u8(hidden: Tensor, parts: int = 1) -> Tensor:
    """`hidden` (..., in) rounded to 256 levels from each row's least to its largest value.

    Levels are multiples of the scale, so that values near 0, which most are, become 0 and do not
    all get the same error. Each of a row's parts has its own levels.
    """
    rows = hidden.unflatten(-1, (parts, -1))
    lowest, highest = rows.aminmax(dim=-1, keepdim=True)
    scale = ((highest - lowest) / U8_STEPS).clamp_min(SMALLEST_SCALE)
    level = (lowest / scale).round()
    codes = (rows / scale - level).round().clamp(0, U8_STEPS)
    return (codes * scale + level * scale).flatten(-2)


def blocks_as_s8(hidden: Tensor, block: int) -> Tensor:
    """`hidden` (..., in) rounded to 127 levels on either side of 0, with a scale per block.

    What onnxruntime's MatMulNBits does on x86-64 at accuracy level 4.
    """
    blocks = hidden.unflatten(-1, (-1, block))
    scale = (blocks.abs().amax(-1, keepdim=True) / S8_STEPS).clamp_min(SMALLEST_SCALE)
    return ((blocks / scale).round() * scale).flatten(-2)


def unrounded(hidden: Tensor) -> Tensor:
    """`hidden` itself."""
    return hidden
