"""The reference compared with Hugging Face's Llama and SigLIP, on the same random weights."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from mod_edge.config import VISION_ACTIVATIONS, RopeScaling, VisionConfig
from mod_edge.plan.layout import step_layout

pytestmark = pytest.mark.numeric

# Relative to the largest value of the output, over five seeds on x86-64.
RTOL_LLAMA = 2e-5  # measured 4.9e-6; one position off gives 0.4, norms swapped 0.4, eps 1e-6 9e-5
RTOL_SIGLIP = 5e-6  # measured 9.6e-7, the tower alone 3.4e-7; other GELU gives 1e-4, eps 1e-5 1e-5

LLAMA3_SCALING = RopeScaling(8.0, 1.0, 4.0, 32)  # 32: short enough to use all three ranges


def relative_error(ours, theirs):
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def hugging_face_llama(model):
    """`LlamaForCausalLM` with the decoder weights of `model`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = dict(vars(model.config.text_config))  # named as in Hugging Face's config
    rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    scaling = fields.pop("rope_scaling")
    if scaling is not None:
        rope |= vars(scaling)
    config = LlamaConfig(
        **fields, max_position_embeddings=128, rope_parameters=rope, attn_implementation="eager"
    )
    llama = LlamaForCausalLM(config).eval().requires_grad_(False)
    state = {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith(("model.", "lm_head."))
    }
    llama.load_state_dict(state)  # strict: every name is the same
    return llama


def hugging_face_siglip(model):
    """`SiglipVisionModel` with the vision weights of `model`."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(**vars(model.config.vision_config), attn_implementation="eager")
    siglip = SiglipVisionModel(config).eval().requires_grad_(False)
    # transformers 5 has versions with and without the `vision_model.` prefix of its files.
    siglip.base_model.load_state_dict(model.vision_model.state_dict())
    return siglip


@pytest.mark.parametrize(
    ("num_key_value_heads", "text"),
    [
        (2, {}),
        (3, {"tie_word_embeddings": True}),
        (2, {"rope_scaling": LLAMA3_SCALING}),
        (6, {"rope_theta": 10000.0, "rms_norm_eps": 1e-6}),
    ],
    ids=["groups of three", "tied, groups of two", "llama3 rope scaling", "groups of one"],
)
def test_the_decoder_without_mod_is_hugging_faces_llama(
    make_config, make_model, num_key_value_heads, text
):
    config = make_config(num_key_value_heads=num_key_value_heads, mod=None, **text)
    model = make_model(config)
    ids = torch.randint(0, 67, (90,), generator=torch.Generator().manual_seed(0))
    theirs = hugging_face_llama(model)(ids[None]).logits[0]
    embeds = model.model.embed_tokens(ids)
    ours = model.full_forward(embeds, step_layout((len(ids),), 10, 10))
    assert relative_error(ours, theirs) <= RTOL_LLAMA


@pytest.mark.parametrize("hidden_act", VISION_ACTIVATIONS)
@pytest.mark.parametrize(
    "vision",
    [
        VisionConfig(32, 40, 2, 4, image_size=59, patch_size=14),
        VisionConfig(42, 50, 3, 3, image_size=30, patch_size=7, layer_norm_eps=1e-5),
    ],
    ids=["59 pixels, 4 heads of 8", "30 pixels, 3 heads of 14"],
)
def test_the_vision_tower_is_hugging_faces_siglip(make_config, make_model, vision, hidden_act):
    vision = replace(vision, hidden_act=hidden_act)
    model = make_model(replace(make_config(), vision_config=vision))
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, vision.image_size, vision.image_size)
    pixel_values = torch.rand(shape, generator=generator) * 2 - 1
    theirs = hugging_face_siglip(model)(pixel_values)
    hidden, cls = model.vision_model(pixel_values)
    assert relative_error(hidden, theirs.last_hidden_state) <= RTOL_SIGLIP
    assert relative_error(cls[:, 0], theirs.pooler_output) <= RTOL_SIGLIP


@pytest.mark.parametrize(
    ("has_cls", "pooled"), [(True, (3, 3)), (False, (3, 3)), (True, None)], ids=str
)
def test_frame_tokens_are_siglips_pooler_output_and_its_pooled_grid(
    make_config, make_model, has_cls, pooled
):
    config = make_config()
    siglip = hugging_face_siglip(make_model(config))
    # The same weights: each is seeded by its name.
    model = make_model(replace(config, frame_token_cls=has_cls, frame_token_pooled=pooled))
    model.connector = nn.Identity()
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 59, 59, 3), dtype=torch.uint8, generator=generator)
    output = siglip((frames.permute(0, 3, 1, 2) * (1 / 255) - 0.5) / 0.5)
    grid = output.last_hidden_state.transpose(1, 2).unflatten(2, (4, 4))
    cells = adaptive_avg_pool2d(grid, (3, 3)).flatten(2).transpose(1, 2)
    cls = output.pooler_output[:, None]
    theirs = torch.cat([cls] * has_cls + [cells] * (pooled is not None), dim=1)
    ours = model(frames)
    assert relative_error(ours, theirs) <= RTOL_SIGLIP
