"""Norm and rotation of a batch with backward passes of their own.

Both compute in the states' own width (float32 in training, float64 in tests) and hand over what the
matrix products take. Autograd would keep, and walk through, every step between in float32: with
these the rest of a layer than its products takes half the time.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def normalized(hidden: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """`hidden` (..., D) over its root mean square, in `dtype`: RMSNorm without its weight.

    The weight, a factor of each column, is multiplied into the matrix that comes next.
    """
    result: Tensor = _Normalized.apply(hidden, eps, dtype)  # type: ignore[no-untyped-call]
    return result


def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`states` (..., heads, E) with RoPE.

    Args:
        states: in any dtype, which the result has too.
        cos: (..., 1, E), both halves alike.
        sin: (..., 1, E), the first half negative.
    """
    result: Tensor = _Rotated.apply(states, cos, sin)  # type: ignore[no-untyped-call]
    return result


class _Normalized(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
        scale = (length.square() / hidden.shape[-1] + eps).rsqrt()
        normed = (hidden * scale).to(dtype)
        ctx.save_for_backward(normed, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        normed, scale = ctx.saved_tensors
        shared = (grad * normed).mean(-1, keepdim=True, dtype=scale.dtype)
        return torch.addcmul(grad, normed, shared.to(grad.dtype), value=-1) * scale, None, None


class _Rotated(Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(states, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


def _turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = states.to(cos.dtype)
    halves_exchanged = wide.roll(states.shape[-1] // 2, dims=-1)
    return torch.addcmul(wide * cos, halves_exchanged, sin).to(states.dtype)
