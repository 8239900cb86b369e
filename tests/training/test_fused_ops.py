"""Norm and rotation with custom backward passes, compared with the reference and autograd."""

import pytest
import torch
from torch.autograd import gradcheck

from mod_edge.model.layers import RMSNorm, rotate
from mod_edge.training.fused_ops import normalized, rotated

pytestmark = pytest.mark.numeric

FREQUENCIES = torch.tensor([1.0, 0.3, 0.05], dtype=torch.float64)
EPS = 1e-3


def random_states(*shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def turns(positions):
    """Cos and sin for `rotated`, (rows, 1, E)."""
    angles = positions[:, None, None] * FREQUENCIES
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def test_the_norm_is_the_references_without_its_weight():
    hidden = random_states(5, 7)
    ours = normalized(hidden, EPS, torch.float64)
    assert torch.allclose(ours, RMSNorm(7, EPS)(hidden), rtol=1e-12)


def test_the_norms_gradient_matches_finite_differences():
    assert gradcheck(lambda hidden: normalized(hidden, EPS, torch.float64), random_states(3, 7))


def test_a_row_of_zeros_has_a_norm_and_a_gradient():
    hidden = torch.zeros(2, 7, requires_grad=True)
    (gradient,) = torch.autograd.grad(normalized(hidden, EPS, torch.float32).sum(), hidden)
    assert torch.allclose(gradient, torch.full((2, 7), EPS**-0.5))


def test_the_rotation_is_the_references():
    positions = torch.tensor([0, 1, 5, 1000])
    states = random_states(4, 2, 6)
    theirs = rotate(states, positions, FREQUENCIES)
    assert torch.allclose(rotated(states, *turns(positions)), theirs, rtol=1e-12)


def test_the_rotations_gradient_matches_finite_differences():
    turn = turns(torch.tensor([0, 1, 5, 1000]))
    assert gradcheck(lambda states: rotated(states, *turn), random_states(4, 2, 6))
