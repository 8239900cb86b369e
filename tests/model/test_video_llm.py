"""The whole decoder: fed at once, fed in steps, and compared with a naive implementation."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from mod_edge.config import BASELINES, INSERTIONS, ROUTER_SCALINGS, MoDConfig
from mod_edge.plan.layout import FRAME, step_layout
from tests.naive_twin import naive_logits

pytestmark = pytest.mark.numeric

# A stream in steps: a prompt with the first frame, two frames in one step, text alone, a frame
# between text, a reply token by token, and text with a frame.
STEPS = ((4, FRAME), (1, FRAME, 1, FRAME), (3,), (2, FRAME, 2), (1,), (1,), (1, FRAME))
STREAM = tuple(piece for step in STEPS for piece in step)

# Relative to the largest logit, on x86-64. Kept tokens renumbered instead of at their own positions
# give 0.7, unscaled ones 0.08, one step a position off 1.
RTOL_FP64 = 1e-12  # measured 1.3e-14 in steps, 2.5e-14 to the naive one, over all policies
RTOL_FP32 = 5e-5  # measured 9.2e-6 over all policies and three seeds

POLICIES = [
    None,
    *(
        MoDConfig(*policy)
        for policy in product(INSERTIONS, (0.2, 0.5, 1.0), ("learned", "uniform"), ROUTER_SCALINGS)
    ),
    *map(MoDConfig, BASELINES),
    MoDConfig("early_exit", exit_layer=1),
]


def policy_name(mod):
    if mod is None:
        return "full computation"
    if mod.is_baseline:
        return f"{mod.insertion} {mod.exit_layer}"
    return f"{mod.insertion} {mod.keep_ratio} {mod.selection} {mod.router_scaling}"


def layout_of(config, pieces):
    return step_layout(tuple(pieces), config.frame_num_tokens, config.num_kept)


def random_embeds(config, pieces, dtype):
    num_tokens = layout_of(config, pieces).num_tokens
    generator = torch.Generator().manual_seed(1)
    size = config.text_config.hidden_size
    return torch.randn(num_tokens, size, generator=generator, dtype=torch.float64).to(dtype)


def relative_error(ours, theirs):
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def step_by_step(model, embeds, steps):
    """Logits (T, V) of the stream fed in `steps`."""
    caches = model.empty_caches()
    logits, start = [], 0
    for pieces in steps:
        layout = layout_of(model.config, pieces)
        positions = torch.arange(start, start + layout.num_tokens)
        output = model.step(embeds[positions], layout, positions, caches)
        logits.append(model.logits(output.hidden))
        start += layout.num_tokens
    return torch.cat(logits)


@pytest.mark.parametrize(
    "text",
    [{"attention_bias": True}, {"qk_norm": True, "attention_bias": True}],
    ids=["biases", "biases and norms"],
)
def test_a_decoder_with_qwens_attention_equals_the_naive_one_in_steps_and_at_once(
    make_config, make_model, text
):
    # A key bias that is left out gives 0.08, norms after RoPE 0.2, no norms 1.2.
    model = make_model(make_config(**text), dtype=torch.float64)
    embeds = random_embeds(model.config, STREAM, torch.float64)
    layout = layout_of(model.config, STREAM)
    theirs, _ = naive_logits(model, embeds, layout.frame_index.tolist())
    assert relative_error(model.full_forward(embeds, layout), theirs) <= RTOL_FP64
    assert relative_error(step_by_step(model, embeds, STEPS), theirs) <= RTOL_FP64


# Frames of a model without an interval token: steps of frames alone, also right after a step.
STEPS_WITHOUT_INTERVAL = ((4, FRAME), (FRAME,), (FRAME, FRAME), (3,), (2, FRAME), (1,), (FRAME,))


@pytest.mark.parametrize("mod", [None, MoDConfig(), MoDConfig("all", 0.2), MoDConfig("layer_skip")])
@pytest.mark.parametrize("pooled", [(3, 3), None], ids=["ten tokens", "one token"])
def test_frames_without_an_interval_equal_the_naive_ones_in_steps_and_at_once(
    make_config, make_model, mod, pooled
):
    config = replace(make_config(mod=mod), frame_token_pooled=pooled)
    model = make_model(config, dtype=torch.float64)
    pieces = [piece for step in STEPS_WITHOUT_INTERVAL for piece in step]
    embeds = random_embeds(config, pieces, torch.float64)
    layout = layout_of(config, pieces)
    theirs, _ = naive_logits(model, embeds, layout.frame_index.tolist())
    assert relative_error(model.full_forward(embeds, layout), theirs) <= RTOL_FP64
    assert relative_error(step_by_step(model, embeds, STEPS_WITHOUT_INTERVAL), theirs) <= RTOL_FP64


@pytest.fixture(scope="module", params=POLICIES, ids=policy_name)
def policy_stream(request, make_config, make_model):
    """A float64 model of each policy, embeddings of a stream, and its output when fed at once."""
    config = make_config(mod=request.param)
    model = make_model(config, dtype=torch.float64)
    embeds = random_embeds(config, STREAM, torch.float64)
    return model, embeds, model.full_forward(embeds, layout_of(config, STREAM))


def test_a_stream_fed_in_steps_equals_the_stream_fed_at_once(policy_stream):
    model, embeds, theirs = policy_stream
    ours = step_by_step(model, embeds, STEPS)
    assert relative_error(ours, theirs) <= RTOL_FP64


def test_the_decoder_equals_a_naive_one_that_computes_all_tokens(policy_stream):
    model, embeds, ours = policy_stream
    layout = layout_of(model.config, STREAM)
    theirs, _ = naive_logits(model, embeds, layout.frame_index.tolist())
    assert relative_error(ours, theirs) <= RTOL_FP64


def test_every_mod_layer_keeps_the_tokens_that_the_naive_one_keeps(make_config, make_model):
    config = make_config(mod=MoDConfig("all", 0.5))
    model = make_model(config, seed=1, dtype=torch.float64)
    layout, embeds = layout_of(config, STREAM), random_embeds(config, STREAM, torch.float64)
    output = model.step(embeds, layout, torch.arange(len(embeds)), model.empty_caches())
    _, theirs = naive_logits(model, embeds, layout.frame_index.tolist())
    assert {index: kept.tolist() for index, kept in output.kept.items()} == theirs
    assert len({tuple(map(tuple, kept)) for kept in theirs.values()}) > 1  # layers differ


def test_random_tokens_are_computed_as_in_the_naive_one(make_config, make_model):
    config = make_config(mod=MoDConfig("all_deep", 0.3, "random"))
    model = make_model(config, dtype=torch.float64)
    layout, embeds = layout_of(config, STREAM), random_embeds(config, STREAM, torch.float64)
    torch.manual_seed(0)
    output = model.step(embeds, layout, torch.arange(len(embeds)), model.empty_caches())
    drawn = {index: kept.tolist() for index, kept in output.kept.items()}
    theirs, _ = naive_logits(model, embeds, layout.frame_index.tolist(), drawn)
    assert relative_error(model.logits(output.hidden), theirs) <= RTOL_FP64
    assert len({tuple(chosen) for kept in drawn.values() for chosen in kept}) > 2  # of 10


@pytest.mark.parametrize("seed", range(3))
def test_steps_equal_the_whole_stream_in_float32_too(make_config, make_model, seed):
    model = make_model(make_config(num_key_value_heads=3), seed=seed)
    embeds = random_embeds(model.config, STREAM, torch.float32)
    theirs = model.full_forward(embeds, layout_of(model.config, STREAM))
    assert relative_error(step_by_step(model, embeds, STEPS), theirs) <= RTOL_FP32


def test_keeping_every_token_uniformly_is_the_full_computation_model(make_config, make_model):
    everything = make_config(mod=MoDConfig(keep_ratio=1.0, selection="uniform"))
    full = make_config(mod=None)
    embeds, layout = random_embeds(full, STREAM, torch.float32), layout_of(full, STREAM)
    theirs = make_model(full).full_forward(embeds, layout)
    ours = make_model(everything).full_forward(embeds, layout)
    assert relative_error(ours, theirs) <= RTOL_FP32  # measured 0, without one token 0.8


def test_a_mod_layers_cache_is_shorter_by_the_skipped_tokens_and_a_dense_ones_is_not(
    make_config, make_model
):
    model = make_model(make_config(mod=MoDConfig("interleaved_deep", 0.2)))
    embeds, layout = (
        random_embeds(model.config, STREAM, torch.float32),
        layout_of(model.config, STREAM),
    )
    caches = model.empty_caches()
    output = model.step(embeds, layout, torch.arange(len(embeds)), caches)
    num_tokens, num_rows = 16 + 5 * 10, 16 + 5 * 2
    lengths = [len(cache.positions) for cache in caches]
    assert lengths == [num_tokens, num_tokens, num_tokens, num_rows]
    assert list(output.kept) == [3]
