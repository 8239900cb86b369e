"""RoPE angles from absolute positions, in float64, without a table that would limit the stream.

Rotary embedding in Llama's half-split form: dimension i of the first half is paired with i of the
second. Positions reach millions in a long stream, where float32 angles would lose the fraction of a
turn: angles stay float64 until their cosine and sine are taken.
"""

import math

import numpy as np
import numpy.typing as npt

from mod_edge.config import RopeScaling, TextConfig

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]


def inverse_frequencies(config: TextConfig) -> FloatArray:
    """(E/2,) float64 radians per position, scaled as the config says."""
    half = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies = 1.0 / config.rope_theta**half
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    return _llama3_scaled(frequencies, scaling)


class StepAngles:
    """Writes cosines and sines of a step's positions, with scratch memory for the angles."""

    def __init__(self, config: TextConfig, max_step_tokens: int) -> None:
        self._frequencies = inverse_frequencies(config)
        self._angles = np.empty((max_step_tokens, self._frequencies.size))

    def write(self, position: int, cos: Float32Array, sin: Float32Array) -> None:
        """Write to `cos` and `sin` (T, E/2) for the T positions from `position` on."""
        angles = self._angles[: len(cos)]
        positions = np.arange(position, position + len(cos), dtype=np.float64)
        np.multiply(positions[:, None], self._frequencies, out=angles)
        np.cos(angles, out=cos, casting="same_kind")
        np.sin(angles, out=sin, casting="same_kind")


def _llama3_scaled(frequencies: FloatArray, scaling: RopeScaling) -> FloatArray:
    """Low frequencies divided by `factor`, high ones kept, linearly blended between (Llama 3.1)."""
    low, high, num_positions = scaling.llama3
    turns = num_positions * frequencies / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    scaled: FloatArray = keep * frequencies + (1 - keep) * frequencies / scaling.factor
    return scaled
