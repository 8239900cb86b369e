"""The quantized reference: roundings judged by numpy, value by value, and what is left alone."""

import numpy as np
import pytest
import torch
from torch import nn

from mod_edge.model.presets import preset_config
from mod_edge.model.quantized import (
    blocks_as_s8,
    quantize_model,
    quantized_linears,
    round_activations,
    rounding_of,
    rows_as_u8,
)
from mod_edge.plan.targets import CPU_FP32, Lowering
from mod_edge.plan.weight_forms import INT8_ROWS, NBITS_INT4_CPU, NBITS_INT8

INT8, INT4 = (Lowering("cpu", "fp32", weight_format=name) for name in ("int8", "int4"))


def rows(num_rows=5, num_in=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, num_rows, num_in, generator=generator) * 3 + 1


def test_a_row_is_rounded_to_256_levels_of_its_own_range():
    hidden = rows()
    ours = rows_as_u8(hidden)
    for row, values in enumerate(hidden[0].numpy()):
        low, high = min(values.min(), 0), max(values.max(), 0)
        scale = (high - low) / np.float32(255)
        zero_point = np.round(-low / scale)
        codes = np.clip(np.round(values / scale + zero_point), 0, 255)
        assert ours[0, row].numpy() == pytest.approx((codes - zero_point) * scale, abs=1e-6)
        assert len(np.unique(codes)) > 50
        assert np.abs(ours[0, row].numpy() - values).max() <= 0.51 * scale


@pytest.mark.parametrize("sign", [1, -1])
def test_a_row_of_one_sign_keeps_zero_as_a_level(sign):
    hidden = sign * rows().abs() - 0.0
    hidden[0, 0, 3] = 0
    assert rows_as_u8(hidden)[0, 0, 3] == 0


def test_rows_and_blocks_of_zeros_stay_zeros():
    zeros = torch.zeros(2, 64)
    assert not rows_as_u8(zeros).any()
    assert not blocks_as_s8(zeros, 32).any()


def test_an_outlier_row_leaves_the_other_rows_alone():
    hidden = rows()
    plain = rows_as_u8(hidden)
    hidden[0, 2, 7] = 24_000
    rounded = rows_as_u8(hidden)
    others = [0, 1, 3, 4]
    assert torch.equal(rounded[0, others], plain[0, others])
    assert rounded[0, 2, 7] == pytest.approx(24_000, rel=0.002)  # half a step of 94
    assert not rounded[0, 2, :7].any()  # values below half a step are lost


def test_an_outlier_costs_only_its_own_part_of_a_row():
    hidden = rows(num_in=128)
    hidden[0, 2, 7] = 24_000
    rounded = rows_as_u8(hidden, parts=4)
    for part, ours in zip(hidden.chunk(4, -1), rounded.chunk(4, -1), strict=True):
        assert torch.equal(ours, rows_as_u8(part))
    assert not rounded[0, 2, 8:32].any()
    assert (rounded - hidden)[0, 2, 32:].abs().max() <= 0.51 * (hidden[0, 2, 32:].abs().max() / 127)


@pytest.mark.parametrize(
    ("weight", "num_in", "parts"),
    [
        ("model.layers.3.mlp.down_proj.weight", 96, 4),
        ("self_attn.o_proj.weight", 90, 2),  # the most parts of equal size, up to four
        ("self_attn.o_proj.weight", 63, 1),
        ("mlp.up_proj.weight", 96, 1),
    ],
)
def test_rows_are_rounded_in_parts_where_no_norm_precedes(weight, num_in, parts):
    hidden = rows(num_in=num_in)
    ours = rounding_of(weight, num_in, INT8_ROWS)(hidden)
    assert torch.equal(ours, rows_as_u8(hidden, parts))


def test_a_block_is_rounded_to_127_levels_on_either_side():
    hidden = rows()
    ours = blocks_as_s8(hidden, 32)
    for row, values in enumerate(hidden[0].numpy()):
        for start in range(0, 96, 32):
            block = values[start : start + 32]
            scale = np.abs(block).max() / np.float32(127)
            expected = np.round(block / scale) * scale
            assert ours[0, row, start : start + 32].numpy() == pytest.approx(expected, abs=1e-6)


def test_all_linear_layers_but_routers_are_quantized(make_config, make_model):
    model = make_model(make_config())
    linears = [path for path, part in model.named_modules() if isinstance(part, nn.Linear)]
    routers = {path for path in linears if path.endswith("router")}
    assert routers
    assert quantized_linears(model).keys() == set(linears) - routers


def test_a_quantized_model_differs_in_linear_weights_and_the_embedding_alone(
    make_config, make_model
):
    config = make_config()
    plain = dict(make_model(config).named_parameters())
    model = quantize_model(make_model(config), INT8)
    changed = {
        name for name, part in model.named_parameters() if not torch.equal(part, plain[name])
    }
    linears = {f"{path}.weight" for path in quantized_linears(model)}
    assert changed == linears | {"model.embed_tokens.weight"}
    for name in changed:
        error = (dict(model.named_parameters())[name] - plain[name]).abs().amax(1)
        step = plain[name].abs().amax(1) / 127
        assert (error <= 0.51 * step).all(), name


def test_a_tied_head_is_quantized_apart_from_the_embedding(make_config, make_model):
    model = make_model(make_config(tie_word_embeddings=True))
    original = model.model.embed_tokens.weight.clone()
    model = quantize_model(model, INT8)
    head, table = model.lm_head.weight, model.model.embed_tokens.weight
    assert head.data_ptr() != table.data_ptr()
    assert not torch.equal(table, original)


def test_a_model_without_quantized_weights_stays_as_it_is(make_config, make_model):
    model = make_model(make_config())
    before = {name: part.clone() for name, part in model.state_dict().items()}
    assert quantize_model(model, CPU_FP32) is model
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())


@pytest.mark.parametrize(
    ("form", "rounding"),
    [
        (INT8_ROWS, rows_as_u8),
        (NBITS_INT4_CPU, lambda hidden: blocks_as_s8(hidden, 32)),
        (NBITS_INT8, lambda hidden: hidden),
    ],
    ids=["rows", "blocks", "none"],
)
def test_linear_layers_round_their_input_as_their_form_does(form, rounding):
    torch.manual_seed(0)
    part = nn.Sequential(nn.Linear(96, 8), nn.LayerNorm(8))
    weight, bias = part[0].weight.detach(), part[0].bias.detach()
    hidden = rows()
    ours = round_activations(part, form)(hidden)
    theirs = part[1](rounding(hidden) @ weight.T + bias)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_only_decoder_layers_have_four_bits(make_model):
    model = quantize_model(make_model(preset_config("tiny")), INT4)
    for path, part in quantized_linears(model).items():
        levels = max(len(block.unique()) for block in part.weight[0].split(32))
        assert (levels <= 16) == path.startswith("model.layers."), path
