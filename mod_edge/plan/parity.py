"""How far arrays and selections are from the reference, row by row so that no row is hidden."""

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

# Errors are relative to the row's largest value, but to at least this share of the array's largest:
# rows smaller than that are what large terms left over when they cancelled out.
LEAST_ROW_SHARE = 1e-3
# Router logits that differ by less than this, relative to the step's largest, are a tie: either
# token may be kept. Graph and reference compute them in float32 from the same inputs, and float32
# sums of a thousand products in another order differ by about 1e-6. Of 135 recorded frames at MoD
# layers none was that close; selecting the smallest weights has a gap of 1.1.
TIED_LOGITS = 1e-5


def row_scales(theirs: npt.NDArray[Any]) -> FloatArray:
    """(..., 1): the scale of errors in each row (the last dim) of the reference.

    It is the row's largest absolute value. With the array's, one row of very large values, as
    language models have for the first token, would hide errors in all other rows.
    """
    sizes = np.abs(theirs.astype(np.float32)).max(axis=-1, keepdims=True, initial=0)
    least = LEAST_ROW_SHARE * float(sizes.max(initial=0))
    scales: FloatArray = np.maximum(sizes, least or 1.0).astype(np.float32)
    return scales


def worst_row_cosine(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> float:
    """The smallest cosine between rows (the last dim) of two arrays of one shape; 1 if empty."""
    first = ours.reshape(-1, ours.shape[-1]).astype(np.float64)
    second = theirs.reshape(-1, theirs.shape[-1]).astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first * second).sum(axis=1)
    is_zero = ~first.any(axis=1) & ~second.any(axis=1)
    cosines = np.where(is_zero, 1.0, products / np.where(lengths > 0, lengths, 1.0))
    return float(cosines.min(initial=1.0))


def selection_gap(router_logits: FloatArray, kept: IntArray) -> float:
    """How far a selection is from the top K, relative to the largest logit; 0 if it is the top K.

    The largest amount by which a dropped token's logit exceeds a kept one's, over all frames.
    Backends that round differently may swap tokens with almost equal logits; any other selection
    has a large gap.

    Args:
        router_logits: (F, N).
        kept: (F, K) int, positions within each frame; infinite gap unless they ascend.
    """
    if not (np.diff(kept, axis=1) > 0).all():
        return float("inf")
    if not kept.size or kept.shape[1] == router_logits.shape[1]:
        return 0.0
    is_kept = np.zeros(router_logits.shape, bool)
    np.put_along_axis(is_kept, kept, values=True, axis=1)
    least_kept = np.where(is_kept, router_logits, np.inf).min(axis=1)
    most_dropped = np.where(is_kept, -np.inf, router_logits).max(axis=1)
    return max(0.0, float((most_dropped - least_kept).max()) / _largest(router_logits))


def num_other_tokens(router_logits: FloatArray, kept: IntArray) -> int:
    """Tokens of a selection (F, K) that are not among their frame's K largest logits (F, N)."""
    right = np.argsort(-router_logits, axis=1)[:, : kept.shape[1]]
    return sum(
        len(set(ours) - set(theirs))
        for ours, theirs in zip(kept.tolist(), right.tolist(), strict=True)
    )


def cut_margin(router_logits: FloatArray, num_kept: int) -> float:
    """The smallest distance between a frame's last kept and first dropped logit, over (F, N).

    Relative to the largest logit; infinite if nothing is dropped.
    """
    falling = -np.sort(-router_logits, axis=1)
    if not len(falling) or num_kept == falling.shape[1]:
        return float("inf")
    margin = (falling[:, num_kept - 1] - falling[:, num_kept]).min()
    return float(margin) / _largest(router_logits)


def _largest(router_logits: FloatArray) -> float:
    """The largest absolute value; 1 if all are 0, as from an untrained router."""
    return float(np.abs(router_logits).max()) or 1.0
