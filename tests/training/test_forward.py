"""The batched decoder compared with the reference, stream by stream, for every policy."""

from itertools import product

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from mod_edge.config import BASELINES, INSERTIONS, ROUTER_SCALINGS, MoDConfig
from mod_edge.model.layers import MoDDecoderLayer, rotate
from mod_edge.plan.layout import FRAME, step_layout
from mod_edge.training.batches import Batch
from mod_edge.training.forward import BatchedDecoder
from tests.frame_layouts import OTHER_LAYOUTS

pytestmark = pytest.mark.numeric

# Streams of unequal length, with frames and text; the second has no frames.
STREAMS = ((4, FRAME, 1, FRAME, 7, FRAME, 2), (11,), (3, FRAME, 5), (1, FRAME, 1, FRAME, FRAME))

# Relative to the largest logit, on x86-64. Wrong positions of kept tokens give 0.6, no router
# scaling 0.55, padding that is written back 1, attention that sees one row too many 0.9.
RTOL_FP64 = 1e-12  # measured 2.0e-14 over all policies
RTOL_FP32 = 5e-5  # measured 2.8e-6
RTOL_BF16 = 0.15  # measured 0.046
# Relative to a parameter's largest gradient; measured 5e-14, and 3e-10 for the last layer's router,
# see below.
RTOL_GRADIENT = 1e-8

POLICIES = [
    None,
    *(MoDConfig(*each) for each in product(INSERTIONS, (0.2, 1.0), ("learned",), ROUTER_SCALINGS)),
    *(MoDConfig("interleaved", 0.5, selection) for selection in ("uniform", "random")),
    *(MoDConfig(insertion) for insertion in BASELINES),
]

# What Qwen2 and Qwen3 add to Llama's attention.
QWENS = [{}, {"attention_bias": True}, {"attention_bias": True, "qk_norm": True}]


def policy_name(mod):
    return "full computation" if mod is None else "-".join(map(str, vars(mod).values()))


def layouts_of(config):
    return [step_layout(each, config.frame_num_tokens, config.num_kept) for each in STREAMS]


def random_batch(config):
    """A batch of `STREAMS` with random ids and features, and labels at all rows except padding."""
    generator = torch.Generator().manual_seed(3)
    layouts = layouts_of(config)
    length = max(layout.num_tokens for layout in layouts)
    ids = torch.randint(config.text_config.vocab_size, (len(layouts), length), generator=generator)
    is_text = torch.zeros(len(layouts), length, dtype=torch.bool)
    frame_index, label_rows = [], []
    for number, layout in enumerate(layouts):
        is_text[number, torch.tensor(layout.text_index)] = True
        frame_index.append(layout.frame_index + number * length)
        label_rows.append(np.arange(layout.num_tokens) + number * length)
    frame_index = torch.from_numpy(np.concatenate(frame_index))
    rows = torch.from_numpy(np.concatenate(label_rows))
    size = (*frame_index.shape, config.vision_config.hidden_size)
    features = torch.randn(size, generator=generator).to(torch.float16)
    frames = torch.arange(len(frame_index))
    return Batch(ids, is_text, frame_index, frames, features, rows, rows % 5, rows % 2 == 0)


def reference_logits(model, batch, forced_kept=()):
    """The reference's logits, stream by stream, at all rows except padding.

    `forced_kept` are the kept tokens of each MoD layer, (F, K) of all streams.
    """
    logits, first_frame = [], 0
    frames = model.connector(batch.features.to(model.lm_head.weight.dtype))
    for ids, layout in zip(batch.token_ids, layouts_of(model.config), strict=True):
        embeds = model.model.embed_tokens(ids[: layout.num_tokens]).clone()
        mine = slice(first_frame, first_frame + layout.num_frames)
        embeds[torch.tensor(layout.frame_index)] = frames[mine]
        first_frame = mine.stop
        if not forced_kept:
            logits.append(model.full_forward(embeds, layout))
            continue
        kept = iter(forced_kept)
        positions = torch.arange(len(embeds))
        for layer, cache in zip(model.model.layers, model.empty_caches(), strict=True):
            forced = (next(kept)[mine],) if isinstance(layer, MoDDecoderLayer) else ()
            embeds, _ = layer(embeds, layout, positions, cache, *forced)
        logits.append(model.logits(embeds))
    return torch.cat(logits)


def relative_error(ours, theirs):
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.fixture(params=POLICIES, ids=policy_name)
def policy(request):
    return request.param


def noted_choices(decoder, monkeypatch):
    """A list that collects the decoder's kept tokens, one entry per MoD layer."""
    noted, choose = [], decoder._choose
    monkeypatch.setattr(decoder, "_choose", lambda *args: noted.append(choose(*args)) or noted[-1])
    return noted


def test_logits_of_a_batch_are_the_references(policy, make_config, make_model, monkeypatch):
    model = make_model(make_config(mod=policy), dtype=torch.float64)
    batch = random_batch(model.config)
    decoder = BatchedDecoder(model, torch.float64)
    choices = noted_choices(decoder, monkeypatch)
    ours = decoder.logits(batch)
    is_random = policy is not None and policy.selection == "random"
    theirs = reference_logits(model, batch, choices if is_random else ())
    assert relative_error(ours, theirs) <= RTOL_FP64


@pytest.mark.parametrize("text", QWENS[1:], ids=list)
def test_logits_of_qwens_attention_are_the_references(make_config, make_model, text):
    model = make_model(make_config(num_key_value_heads=3, **text), dtype=torch.float64)
    batch = random_batch(model.config)
    ours = BatchedDecoder(model, torch.float64).logits(batch)
    assert relative_error(ours, reference_logits(model, batch)) <= RTOL_FP64


@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_logits_of_other_frame_layouts_are_the_references(make_config, make_model, layout):
    model = make_model(OTHER_LAYOUTS[layout](make_config()), dtype=torch.float64)
    batch = random_batch(model.config)
    ours = BatchedDecoder(model, torch.float64).logits(batch)
    assert relative_error(ours, reference_logits(model, batch)) <= RTOL_FP64


@pytest.mark.parametrize("text", QWENS, ids=list)
@pytest.mark.parametrize(
    "mod",
    [None, *(MoDConfig("all", 0.5, router_scaling=each) for each in ROUTER_SCALINGS)],
    ids=policy_name,
)
def test_every_parameter_gets_the_references_gradient(make_config, make_model, mod, text):
    """Including routers and tied weights.

    The last layer's router has almost no gradient under `full` scaling, because the norm after it
    removes the scale.
    """
    config = make_config(mod=mod, tie_word_embeddings=True, **text)
    model = make_model(config, dtype=torch.float64)
    batch = random_batch(model.config)
    trained = {
        name: parameter.requires_grad_(True)
        for name, parameter in model.named_parameters()
        if not name.startswith("vision_model.")
    }
    ours, theirs = (
        torch.autograd.grad(cross_entropy(logits, batch.labels), list(trained.values()))
        for logits in (
            BatchedDecoder(model, torch.float64).logits(batch),
            reference_logits(model, batch),
        )
    )
    for name, our, their in zip(trained, ours, theirs, strict=True):
        assert float(their.abs().max()) > 1e-6, name
        assert relative_error(our, their) <= RTOL_GRADIENT, name


@pytest.mark.parametrize("text", [QWENS[0], QWENS[-1]], ids=list)
@pytest.mark.parametrize(
    ("dtype", "allowed"), [(torch.float32, RTOL_FP32), (torch.bfloat16, RTOL_BF16)]
)
def test_narrow_matrix_products_stay_near_the_reference(
    make_config, make_model, monkeypatch, dtype, allowed, text
):
    model = make_model(make_config(num_key_value_heads=3, **text))
    batch = random_batch(model.config)
    decoder = BatchedDecoder(model, dtype)
    choices = noted_choices(decoder, monkeypatch)
    ours = decoder.logits(batch)
    assert ours.dtype == torch.float32
    assert relative_error(ours, reference_logits(model, batch, choices)) <= allowed


def test_random_selection_differs_by_layer_and_repeats_with_its_seed(
    make_config, make_model, monkeypatch
):
    model = make_model(make_config(mod=MoDConfig("all", 0.5, "random")))
    batch = random_batch(model.config)
    decoder = BatchedDecoder(model, torch.float32, torch.Generator().manual_seed(5))
    choices = noted_choices(decoder, monkeypatch)
    first = decoder.logits(batch)
    assert len({tuple(kept.flatten().tolist()) for kept in choices}) == len(choices) == 4
    again = BatchedDecoder(model, torch.float32, torch.Generator().manual_seed(5)).logits(batch)
    assert torch.equal(first, again)


@pytest.mark.parametrize("text", [QWENS[0], QWENS[-1]], ids=list)
def test_a_layers_queries_and_keys_are_the_references(make_config, make_model, text):
    model = make_model(make_config(mod=None, **text), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, 48, generator=generator, dtype=torch.float64)
    layer, found = (
        model.model.layers[1],
        BatchedDecoder(model, torch.float64).query_and_key(hidden, 1),
    )
    attention = layer.self_attn
    parts = ((attention.q_proj, attention.q_norm), (attention.k_proj, attention.k_norm))
    for ours, (projection, norm) in zip(found, parts, strict=True):
        heads = norm(projection(layer.input_layernorm(hidden)).unflatten(-1, (-1, 16)))
        for stream, states in zip(ours, heads, strict=True):
            theirs = rotate(states, torch.arange(9), attention.frequencies)
            assert relative_error(stream, theirs) <= RTOL_FP64
