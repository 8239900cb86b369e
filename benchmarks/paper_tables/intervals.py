"""Means over seeds with their 95 % intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Student's t, 97.5 % quantiles for 1, 2, 3, ... degrees of freedom.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Estimate:
    """A mean of `num_seeds` values; `half_width` of its 95 % interval, None for one value."""

    mean: float
    half_width: float | None
    num_seeds: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean with its t interval; None of no values.

    Args:
        values: one a seed, at most ten.
    """
    if not values:
        return None
    num_seeds = len(values)
    mean = math.fsum(values) / num_seeds
    if num_seeds == 1:
        return Estimate(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (num_seeds - 1)
    half_width = T_QUANTILES[num_seeds - 2] * math.sqrt(variance / num_seeds)
    return Estimate(mean, half_width, num_seeds)
