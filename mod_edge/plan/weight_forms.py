"""How graphs hold and multiply quantized weights: the formats a user chooses, and their forms.

A *format* is a value of `--weights`; a *form* is how one target's graphs realize it, as ONNX ops.
Quantized are the weights of linear layers. Routers and norms are float32, biases, convolutions,
position embeddings and the vision pooling head's packed projection have the precision's dtype, and
logits are float32 in every form.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

AS_DTYPE = "as-dtype"
INT8 = "int8"
INT8_WEIGHT_ONLY = "int8-weight-only"
INT4 = "int4"
FORMAT_NAMES = (AS_DTYPE, INT8, INT8_WEIGHT_ONLY, INT4)

# Inputs that share a scale in 4-bit weights and in MatMulNBits: the smallest block that both
# onnxruntime's kernels and TensorRT support, so the most precise.
BLOCK = 32
ROUND_TO_NEAREST, SYMMETRIC_SEARCH, K_QUANT = "round-to-nearest", "symmetric-search", "k-quant"


@dataclass(frozen=True)
class WeightForm:
    """One way to hold a linear layer's weight [in, out] and to multiply with it.

    Attributes:
        op: the ONNX op that multiplies or dequantizes: MatMulInteger, MatMulNBits (onnxruntime's)
            or DequantizeLinear.
        bits: of a weight, 8 or 4.
        block: consecutive inputs that share a scale; None for one scale per output channel.
        method: how weights are rounded. `ROUND_TO_NEAREST` and `SYMMETRIC_SEARCH`, which searches
            each block's scale, are symmetric around 0; `K_QUANT` has a zero point a block.
        activations: how the op rounds its own input, "u8 per row" (a scale and a zero point per
            row, or per part of it), "s8 per block" (a scale per block of a row), or "" if it does
            not.
        row_parts: parts of equal size with their own scale and zero point into which an input row
            of the weights `IN_PARTS` is cut; other weights round a row as a whole.
    """

    op: str
    bits: int
    block: int | None = None
    method: str = ROUND_TO_NEAREST
    activations: str = ""
    row_parts: int = 1

    @property
    def has_zero_points(self) -> bool:
        """Whether every block of weights has a zero point."""
        return self.method == K_QUANT

    def parts_of(self, weight: str, num_in: int) -> int:
        """Parts of an input row of that weight, a number that divides its inputs."""
        return math.gcd(self.row_parts, num_in) if weight.endswith(IN_PARTS) else 1

    def bytes_per_weight(self, scale_bytes: int) -> float:
        """Bytes in a file, with the block's share of its scale and zero point.

        What there is once per output channel is left out: less than 1 % from 1,000 inputs on.

        Args:
            scale_bytes: of one scale; scales have the graph's dtype.
        """
        if self.block is None:
            return self.bits / 8
        zero_point_bits = self.bits if self.has_zero_points else 0
        return (self.bits + (8 * scale_bytes + zero_point_bits) / self.block) / 8

    def to_json(self) -> dict[str, Any]:
        """For manifests."""
        return asdict(self)


U8_ROWS, S8_BLOCKS = "u8 per row", "s8 per block"
# The inputs of these follow no norm: outliers in one part leave the others precise. On SmolLM2 that
# halves what rounding activations costs.
IN_PARTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
INT8_ROWS = WeightForm("MatMulInteger", 8, activations=U8_ROWS, row_parts=4)
NBITS_INT4_CPU = WeightForm("MatMulNBits", 4, BLOCK, K_QUANT, S8_BLOCKS)
NBITS_INT4 = WeightForm("MatMulNBits", 4, BLOCK, K_QUANT)
NBITS_INT8 = WeightForm("MatMulNBits", 8, BLOCK)
DEQUANTIZED_INT4 = WeightForm("DequantizeLinear", 4, BLOCK, SYMMETRIC_SEARCH)
DEQUANTIZED_INT8 = WeightForm("DequantizeLinear", 8)
# Of the embedding table in every quantized bundle: the host gathers and dequantizes its rows.
EMBEDDING_INT8 = WeightForm("Gather", 8)
# The least scale, for rows and channels of zeros: the smallest positive float16.
SMALLEST_SCALE = 2.0**-24


@dataclass(frozen=True)
class WeightFormat:
    """A format as one target has it.

    Attributes:
        name: value of `--weights`.
        layers: form of the decoder layers; None if weights keep their dtype.
        others: form of the head, the vision encoder and the connector, which keep 8 bits where
            layers have 4. They are a small part of a large model, and a head in 4 bits costs more
            perplexity than all layers together.
    """

    name: str
    layers: WeightForm | None = None
    others: WeightForm | None = None


KEEPING_DTYPE = WeightFormat(AS_DTYPE)


def is_quantized(weight: str) -> bool:
    """Whether a linear layer's weight of that name is quantized: all but those of routers."""
    return weight.split(".")[-2] != "router"
