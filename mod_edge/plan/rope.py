"""RoPE angles from absolute positions, in float64, without a table and so without a longest stream.

Rotary embedding in Llama's half-split form: dimension i of the first half is paired with i of the
second. Positions reach millions in a long stream; float32 angles would lose the fraction of a turn
there, so angles stay float64 until their cosine and sine are taken.
"""

import math

import numpy as np
import numpy.typing as npt

from mod_edge.config import RopeScaling, TextConfig

FloatArray = npt.NDArray[np.float64]


def inverse_frequencies(config: TextConfig) -> FloatArray:
    """(E/2,) float64 radians a position, Llama 3's scaling applied where the config asks for it."""
    half = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies = 1.0 / config.rope_theta**half
    if config.rope_scaling is not None:
        frequencies = _llama3_scaled(frequencies, config.rope_scaling)
    return frequencies


def _llama3_scaled(frequencies: FloatArray, scaling: RopeScaling) -> FloatArray:
    """Low frequencies divided by `factor`, high ones kept, a linear blend between (Llama 3.1)."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    scaled: FloatArray = keep * frequencies + (1 - keep) * frequencies / scaling.factor
    return scaled
