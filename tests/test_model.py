"""The whole decoder: fed at once, fed in pieces, and beside a twin that skips nothing."""

from itertools import product

import pytest
import torch

from mod_edge.config import INSERTIONS, ROUTER_SCALINGS, SELECTIONS, MoDConfig
from mod_edge.layout import FRAME, step_layout
from tests.naive_twin import naive_logits

# What a stream is made of, and how it is cut into steps: with a prompt before the first frame, two
# and three frames in one step, a long text in one step and a reply token by token.
STEPS = (
    *((4, FRAME), (1, FRAME, 1, FRAME), (3,), (2, FRAME, 1, FRAME, 1, FRAME, 2)),
    *((1,), (1,), (1,), (1, FRAME)),
)
STREAM = tuple(piece for step in STEPS for piece in step)

# Relative to the largest logit. Measured over the policies below on x86-64: TODO
RTOL_FP64 = 1e-12
RTOL_FP32 = 1e-5

POLICIES = [
    None,
    *(
        MoDConfig(*policy)
        for policy in product(INSERTIONS, (0.2, 0.5, 1.0), SELECTIONS, ROUTER_SCALINGS)
    ),
]
every_policy = pytest.mark.parametrize(
    "mod",
    POLICIES,
    ids=lambda mod: f"{mod.insertion}-{mod.keep_ratio}-{mod.selection}-{mod.router_scaling}"
    if mod
    else "full computation",
)


def layout_of(config, pieces):
    return step_layout(tuple(pieces), config.frame_num_tokens, config.num_kept)


def random_embeds(config, pieces, dtype, seed=1):
    num_tokens = layout_of(config, pieces).num_tokens
    generator = torch.Generator().manual_seed(seed)
    size = config.text_config.hidden_size
    return torch.randn(num_tokens, size, generator=generator, dtype=torch.float64).to(dtype)


def relative_error(ours, theirs):
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def step_by_step(model, embeds, steps):
    """Logits (T, V) of the stream fed in `steps`, and its caches."""
    caches = model.empty_caches()
    logits, start = [], 0
    for pieces in steps:
        layout = layout_of(model.config, pieces)
        positions = torch.arange(start, start + layout.num_tokens)
        output = model.step(embeds[positions], layout, positions, caches)
        logits.append(model.logits(output.hidden))
        start += layout.num_tokens
    return torch.cat(logits), caches


@every_policy
def test_a_stream_fed_in_steps_equals_the_stream_fed_at_once(make_config, make_model, mod):
    model = make_model(make_config(num_layers=4, mod=mod), dtype=torch.float64)
    embeds = random_embeds(model.config, STREAM, torch.float64)
    theirs = model.full_forward(embeds, layout_of(model.config, STREAM))
    ours, _ = step_by_step(model, embeds, STEPS)
    print("ERR step", relative_error(ours, theirs))
    assert relative_error(ours, theirs) <= RTOL_FP64


@every_policy
def test_the_decoder_equals_a_twin_that_computes_all_tokens(make_config, make_model, mod):
    config = make_config(num_layers=4, num_key_value_heads=3, mod=mod)
    model = make_model(config, seed=2, dtype=torch.float64)
    layout, embeds = layout_of(config, STREAM), random_embeds(config, STREAM, torch.float64)
    theirs, their_kept = naive_logits(model, embeds, layout.frame_index.tolist())
    output = model.step(embeds, layout, torch.arange(len(embeds)), model.empty_caches())
    ours = model.logits(output.hidden)
    assert {index: kept.tolist() for index, kept in output.kept.items()} == their_kept
    print("ERR twin", relative_error(ours, theirs))
    assert relative_error(ours, theirs) <= RTOL_FP64
    torch.testing.assert_close(model.full_forward(embeds, layout), ours, rtol=0, atol=0)
