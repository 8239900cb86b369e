"""How graphs hold and multiply quantized weights: the formats a user chooses, and their forms.

A *format* is a value of `--weights`; a *form* is how one target's graphs realize it, as ONNX ops.
Quantised are the weights of linear layers. Norms, biases, routers, convolutions and position
embeddings keep the precision's dtype (or float32), and logits are float32 in every form.
"""

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
        activations: how the op rounds its own input, "u8 a row" (a scale and a zero point per
            row), "s8 a block" (a scale per block of a row), or "" if it does not.
    """

    op: str
    bits: int
    block: int | None = None
    method: str = ROUND_TO_NEAREST
    activations: str = ""

    @property
    def has_zero_points(self) -> bool:
        """Whether every block of weights has a zero point."""
        return self.method == K_QUANT

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


U8_ROWS, S8_BLOCKS = "u8 a row", "s8 a block"
INT8_ROWS = WeightForm("MatMulInteger", 8, activations=U8_ROWS)
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
        decoder: form of the decoder layers and the head; None if weights keep their dtype.
        vision: form of the vision encoder and the connector.
    """

    name: str
    decoder: WeightForm | None = None
    vision: WeightForm | None = None


KEEPING_DTYPE = WeightFormat(AS_DTYPE)


def is_quantized(weight: str) -> bool:
    """Whether a linear layer's weight of that name is quantized: all but those of routers."""
    return weight.split(".")[-2] != "router"
