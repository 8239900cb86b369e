"""The dtype of norms, softmax, rotation and router: float32 in half-precision models too."""

import torch
from torch import Tensor


def widened(states: Tensor) -> Tensor:
    """`states` in at least float32."""
    return states.to(torch.promote_types(states.dtype, torch.float32))
