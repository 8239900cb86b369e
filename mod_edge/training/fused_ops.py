"""Norm and rotation of a batch, with custom backward passes.

Both compute in the dtype of the states (float32 in training, float64 in tests) and return the dtype
of the matrix products. Autograd would keep and traverse every intermediate result in float32: these
functions halve the time of a layer outside its matrix products.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def normalized(hidden: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """`hidden` (..., D) divided by its root mean square, in `dtype`: RMSNorm without its weight.

    The caller folds the weight into the next matrix.
    """
    result: Tensor = _Normalized.apply(hidden, eps, dtype)  # type: ignore[no-untyped-call]
    return result


def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`states` (..., heads, E) with RoPE.

    Args:
        states: any dtype; the result has the same.
        cos: (..., 1, E), both halves equal.
        sin: (..., 1, E), the first half negated.
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
