"""Mixture-of-Depths routing: which vision tokens of a frame enter a layer.

Expert-choice routing of Raposo et al. 2024 (arXiv:2404.02258), per frame and on vision tokens only
as in VideoLLM-MoD (arXiv:2408.16730); text is never skipped. Selections are always positions in
temporal order, so that RoPE and the causal mask stay correct.
"""

import torch
from torch import Tensor

from mod_edge.errors import ShapeError


def keep_top_tokens(router_weights: Tensor, num_kept: int) -> Tensor:
    """Positions of each frame's `num_kept` heaviest tokens, in temporal order.

    Args:
        router_weights: (F, N), one scalar per token.
        num_kept: K, tokens kept of the N; 1 <= K <= N.

    Returns:
        (F, K) int64, ascending along K.

    Raises:
        ShapeError: num_kept is outside 1..N.
    """
    num_tokens = router_weights.shape[1]
    _check_num_kept(num_kept, num_tokens)
    indices = router_weights.topk(num_kept, dim=1).indices  # (F, K), heaviest first
    return indices.sort(dim=1).values  # sorts the positions; argsort would give ranks


def uniform_tokens(num_tokens: int, num_kept: int) -> tuple[int, ...]:
    """The K of N tokens that the `uniform` selection keeps in every frame: 0, N//K, 2*(N//K), ...

    Raises:
        ShapeError: num_kept is outside 1..N.
    """
    _check_num_kept(num_kept, num_tokens)
    return tuple(kept * (num_tokens // num_kept) for kept in range(num_kept))


def random_tokens(num_frames: int, num_tokens: int, num_kept: int) -> Tensor:
    """Positions that the `random` selection keeps: K distinct ones of N, drawn for every frame.

    The published code draws with repetition, so that a frame may keep fewer than K. Uses torch's
    global generator: seed it for repeatable results.

    Returns:
        (F, K) int64, ascending along K.

    Raises:
        ShapeError: num_kept is outside 1..N.
    """
    return keep_top_tokens(torch.rand(num_frames, num_tokens), num_kept)


def rows_to_compute(num_tokens: int, frame_index: Tensor, kept: Tensor) -> Tensor:
    """Rows of a step that a MoD layer computes: all text and the kept tokens, in temporal order.

    Args:
        num_tokens: T.
        frame_index: (F, N) int64, rows of each frame's tokens.
        kept: (F, K) int64, positions within each frame.

    Returns:
        (R,) int64, ascending.
    """
    is_computed = torch.ones(num_tokens, dtype=torch.bool)
    is_computed[frame_index.flatten()] = False
    is_computed[frame_index.gather(1, kept).flatten()] = True
    return is_computed.nonzero()[:, 0]


def _check_num_kept(num_kept: int, num_tokens: int) -> None:
    if not 1 <= num_kept <= num_tokens:
        raise ShapeError(
            f"num_kept={num_kept} is outside 1..{num_tokens}, the tokens of one frame; "
            "change keep_ratio in the checkpoint's config.json"
        )
