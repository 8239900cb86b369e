"""Which dtype computes what: half-precision models still take norms, softmax and rotation wider."""

import torch
from torch import Tensor


def widened(states: Tensor) -> Tensor:
    """`states` in at least float32."""
    return states.to(torch.promote_types(states.dtype, torch.float32))
