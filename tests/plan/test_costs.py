"""Costs of the paper's geometry, compared with the paper's figures."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mod_edge.config import MoDConfig
from mod_edge.model.layers import DecoderLayer
from mod_edge.model.presets import GEOMETRIES, preset_config
from mod_edge.model.video_llm import VideoLLM
from mod_edge.model.vision import FrameEncoder
from mod_edge.plan.costs import (
    PAPER_NUM_FRAMES,
    compare_with_full,
    full_computation,
    layer_parameters,
    num_parameters,
    step_cost,
    vision_flops,
)
from mod_edge.plan.kv_window import NO_ROWS, Rows

PRINTED = 5e-4  # the table's figures have three digits


@pytest.fixture(scope="module")
def paper_config():
    """Llama-3-8B with SigLIP-L/16-384, interleaved, r = 0.2."""
    return preset_config("8b")


def comparison(config, *, has_interval, **mod):
    config = replace(config, mod_config=MoDConfig(**mod))
    return compare_with_full(config, PAPER_NUM_FRAMES, has_interval=has_interval)


@pytest.mark.parametrize(
    ("keep_ratio", "has_interval", "flops_ratio", "kv_ratio"),
    [
        (0.1, False, 0.545, 0.55),
        (0.2, False, 0.592, 0.60),  # the paper's "0.6x FLOPs" and "1.7x longer context"
        (0.3, False, 0.639, 0.65),
        (0.1, True, 0.583, 0.591),
        (0.2, True, 0.625, 0.636),
        (0.3, True, 0.669, 0.682),
    ],
)
def test_the_8b_ratios_over_600_frames_are_the_papers(
    paper_config, keep_ratio, has_interval, flops_ratio, kv_ratio
):
    costs = comparison(paper_config, has_interval=has_interval, keep_ratio=keep_ratio)
    assert costs.flops_ratio == pytest.approx(flops_ratio, abs=PRINTED)
    assert costs.kv_ratio == pytest.approx(kv_ratio, abs=PRINTED)


@pytest.mark.parametrize(
    ("insertion", "flops_ratio"), [("all", 0.184), ("all_deep", 0.235), ("interleaved_deep", 0.617)]
)
def test_the_8b_flops_of_the_other_insertions_are_the_papers(paper_config, insertion, flops_ratio):
    costs = comparison(paper_config, has_interval=False, insertion=insertion)
    assert costs.flops_ratio == pytest.approx(flops_ratio, abs=PRINTED)


@pytest.mark.parametrize(
    ("mod", "num_dense"),
    [
        (MoDConfig("early_exit"), 2),
        (MoDConfig("early_exit", exit_layer=8), 8),
        (MoDConfig("layer_skip"), 16),
    ],
    ids=lambda value: getattr(value, "insertion", value),
)
def test_a_baseline_computes_frames_in_its_dense_layers_only(paper_config, mod, num_dense):
    config = replace(paper_config, mod_config=mod)
    frames_only = compare_with_full(config, PAPER_NUM_FRAMES, has_interval=False)
    assert frames_only.flops_ratio == pytest.approx(num_dense / 32)
    assert frames_only.kv_ratio == num_dense / 32
    with_interval = compare_with_full(config, PAPER_NUM_FRAMES, has_interval=True)
    assert with_interval.kv_ratio == (num_dense * 11 + (32 - num_dense)) / (32 * 11)


def test_the_full_computation_model_has_ratio_one(paper_config):
    config = replace(paper_config, mod_config=None)
    costs = compare_with_full(config, PAPER_NUM_FRAMES, has_interval=True)
    assert costs.model == costs.full
    assert costs.flops_ratio == costs.kv_ratio == 1


def test_the_cost_of_one_frame_of_the_8b_model(paper_config):
    costs = compare_with_full(paper_config, 1, has_interval=True)  # almost no attention yet
    assert costs.full.tokens == costs.model.tokens == 11
    assert costs.full.flops == pytest.approx(154e9, rel=5e-3)
    assert costs.model.flops == pytest.approx(98e9, rel=5e-3)
    assert costs.full.kv_bytes == 2.75 * 2**20  # float32, twice the 1.375 MiB of float16
    assert costs.model.kv_bytes == 1.75 * 2**20


def test_attention_grows_with_the_stream_and_the_linear_layers_do_not(paper_config):
    short, long = (
        compare_with_full(paper_config, num_frames, has_interval=True).full
        for num_frames in (100, 300)
    )
    # 200 more frames of 11 tokens, half of them attended on average; 2 products, 2 FLOPs, 32 layers
    more = 32 * 4 * 11 * (200 * 11 / 2) * 4096
    assert long.flops - short.flops == pytest.approx(more)
    assert long.kv_bytes == short.kv_bytes


def test_the_steps_of_a_stream_cost_together_what_the_stream_costs(paper_config):
    num_frames = 17
    stream = compare_with_full(paper_config, num_frames, has_interval=True).model
    added = Rows(paper_config.frame_stride, paper_config.num_kept + 1)
    past, flops, last = NO_ROWS, 0.0, None
    for _ in range(num_frames):
        last = step_cost(paper_config, added, past)
        flops += last.flops
        past = past.plus(added)
    assert flops / num_frames == pytest.approx(stream.flops)
    assert 4 * last.kv_elements == num_frames * stream.kv_bytes  # the last step reads them all


def test_full_computation_has_no_mod_layers(paper_config):
    full = full_computation(paper_config)
    assert full.mod_layers == ()
    assert full.text_config == paper_config.text_config


def test_vision_flops_of_siglip_l_384_equal_torchs_count(paper_config):
    with torch.device("meta"):
        encoder = FrameEncoder(paper_config)
        encoder.pooling = encoder.pooling.to("meta")
        frames = torch.zeros(1, 384, 384, 3, dtype=torch.uint8)
        with FlopCounterMode(display=False) as counter:
            encoder(frames)
    # our count leaves out one query's projections, the MLP and the pooling to 3 x 3
    assert vision_flops(paper_config) == pytest.approx(counter.get_total_flops(), rel=1e-3)
    assert vision_flops(paper_config) == pytest.approx(380e9, abs=5e9)  # "about 380 GFLOP"


def test_vision_without_cls_does_not_count_the_pooling_head(paper_config):
    head = vision_flops(paper_config) - vision_flops(replace(paper_config, frame_token_cls=False))
    connector = 2 * (1024 * 4096 + 4096**2)  # of the one token
    assert head == 2 * 2 * 576 * 1024**2 + connector


@pytest.mark.parametrize("name", GEOMETRIES)
def test_layer_parameters_equal_a_real_layers(name):
    config = preset_config(name)
    with torch.device("meta"):
        layer = DecoderLayer(config)
    matrices = [weight for weight in layer.parameters() if weight.ndim == 2]
    assert layer_parameters(config) == sum(math.prod(weight.shape) for weight in matrices)
    num_norms = 2 * config.text_config.hidden_size
    assert sum(w.numel() for w in layer.parameters()) == layer_parameters(config) + num_norms


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("mod", [None, MoDConfig(), MoDConfig("all", selection="uniform")])
@pytest.mark.parametrize("has_cls", [True, False])
def test_parameters_are_counted_as_the_model_has_them(name, mod, has_cls):
    require_counted(replace(preset_config(name), mod_config=mod, frame_token_cls=has_cls))


@pytest.mark.parametrize("field", ["attention_bias", "qk_norm"])
def test_parameters_of_qwens_attention_are_counted(make_config, field):
    require_counted(make_config(**{field: True}))


def require_counted(config):
    """The counts are those of the model's own parameters."""
    counts = num_parameters(config)
    with torch.device("meta"):
        model = VideoLLM(config)
    tied = config.text_config.tie_word_embeddings
    head = 0 if tied else sum(tensor.numel() for tensor in model.lm_head.parameters())
    total = sum(tensor.numel() for tensor in model.parameters())
    vision = sum(tensor.numel() for tensor in model.vision_model.parameters())
    connector = sum(tensor.numel() for tensor in model.connector.parameters())
    embedding = model.model.embed_tokens.weight.numel()
    assert counts == {
        "vision": vision,
        "connector": connector,
        "embedding": embedding,
        "decoder": sum(tensor.numel() for tensor in model.model.parameters()) - embedding,
        "head": head,
        "total": total,
    }
