"""Attention by blocks, compared with attention by its definition."""

import pytest
import torch

from mod_edge.training.attention import QUERIES_AT_ONCE, causal_attention

pytestmark = pytest.mark.numeric

# Values are around 1. Measured 0.012; a mask that lets each row see one more gives 2.
ATOL_BF16 = 0.03
# Relative to the largest. Measured 0.0069; the wrong mask gives 0.5.
RTOL_GRADIENT = 0.03


def plain_attention(query, key, value):
    """(B, T, H, E), one query head and one row at a time."""
    _, length, num_heads, head_dim = query.shape
    group = num_heads // key.shape[2]
    heads = []
    for head in range(num_heads):
        rows = []
        for row in range(length):
            seen = key[:, : row + 1, head // group]  # (B, row + 1, E)
            scores = (seen @ query[:, row, head, :, None])[..., 0] / head_dim**0.5
            rows.append((scores.softmax(-1)[..., None] * value[:, : row + 1, head // group]).sum(1))
        heads.append(torch.stack(rows, dim=1))
    return torch.stack(heads, dim=2)


def random_states(length, dtype):
    generator = torch.Generator().manual_seed(length)

    def draw(heads):
        states = torch.randn(3, length, heads, 8, generator=generator)
        return states.to(dtype).requires_grad_(True)

    return draw(6), draw(2), draw(2)


@pytest.mark.parametrize("length", [7, 2 * QUERIES_AT_ONCE + 3])  # three blocks of unequal size
def test_attention_in_bfloat16_by_blocks_equals_the_definition(length):
    states = random_states(length, torch.bfloat16)
    ours = causal_attention(*states)
    theirs = plain_attention(*(each.double() for each in states))
    assert float((ours - theirs).detach().abs().max()) <= ATOL_BF16
    towards = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0))
    for our, their in zip(
        torch.autograd.grad(ours, states, towards.bfloat16()),
        torch.autograd.grad(theirs, states, towards.double()),
        strict=True,
    ):
        assert float((our - their).abs().max() / their.abs().max()) <= RTOL_GRADIENT


def test_attention_in_float64_equals_the_definition():
    states = random_states(23, torch.float64)
    assert torch.allclose(causal_attention(*states), plain_attention(*states), atol=1e-12)
