"""The initial weights of a training run."""

from dataclasses import replace

import pytest
import torch

from mod_edge.config import MoDConfig
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.presets import preset_config, write_random_checkpoint
from mod_edge.training.initial_weights import ROUTER_BIAS, SMALL_DEVIATION, initial_model

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def base(tiny_checkpoint):
    return Checkpoint(tiny_checkpoint)


def test_a_checkpoints_tensors_are_copied_if_name_and_shape_match(base):
    text = replace(base.config.text_config, intermediate_size=80)
    config = replace(base.config, text_config=text, mod_config=MoDConfig("all"))
    model = initial_model(config, base, seed=0)
    old = dict(base.tensors(""))
    changed = {
        name
        for name, parameter in model.named_parameters()
        if name not in old or not torch.equal(parameter, old[name])
    }
    mlps = {name for name in old if name.startswith("model.") and ".mlp." in name}
    routers = {
        f"model.layers.{layer}.router.{part}" for layer in (0, 2, 4) for part in ("weight", "bias")
    }
    assert changed == mlps | routers


def test_a_router_is_copied_with_weight_and_bias_or_not_at_all(base):
    text = replace(base.config.text_config, hidden_size=48)
    config = replace(base.config, text_config=text)
    router = initial_model(config, base, seed=0).model.layers[1].router
    assert float(router.bias.detach()) == ROUTER_BIAS


def test_an_attention_bias_is_copied_with_its_weight_or_not_at_all(tmp_path):
    config = preset_config("tiny")
    text = replace(config.text_config, attention_bias=True)
    config = replace(config, text_config=text)
    write_random_checkpoint(config, tmp_path, seed=0)
    base = Checkpoint(tmp_path)
    name = "model.layers.1.self_attn.q_proj.bias"
    copied = initial_model(config, base, seed=0)
    assert torch.equal(copied.get_parameter(name), base.tensor(name))
    narrower = replace(config, text_config=replace(text, hidden_size=48))
    assert not initial_model(narrower, base, seed=0).get_parameter(name).any()


def test_attention_biases_start_at_0_and_head_norms_at_1(base):
    text = replace(base.config.text_config, attention_bias=True, qk_norm=True)
    model = initial_model(replace(base.config, text_config=text), None, seed=0)
    attention = model.model.layers[1].self_attn
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert torch.equal(projection.bias, torch.zeros(len(projection.weight)))
    assert attention.o_proj.bias is None
    assert torch.equal(attention.q_norm.weight, torch.ones(16))
    assert torch.equal(attention.k_norm.weight, torch.ones(16))


def test_new_weights_have_the_documented_deviations(base):
    model = initial_model(base.config, None, seed=0)
    matrices = {name: each for name, each in model.named_parameters() if len(each) > 1}
    deviations = {name: float(matrix.std()) for name, matrix in matrices.items()}
    layer = "model.layers.1."
    assert deviations[f"{layer}mlp.up_proj.weight"] == pytest.approx(96**-0.5, rel=0.05)
    assert deviations["connector.0.weight"] == pytest.approx(64**-0.5, rel=0.05)
    assert deviations["model.embed_tokens.weight"] == pytest.approx(SMALL_DEVIATION, rel=0.05)
    for name, num_inputs in (("mlp.down_proj.weight", 256), ("self_attn.o_proj.weight", 96)):
        assert deviations[layer + name] == pytest.approx((12 * num_inputs) ** -0.5, rel=0.05)
    assert torch.equal(model.model.norm.weight, torch.ones(96))
    assert torch.equal(model.connector[0].bias, torch.zeros(96))


@pytest.mark.parametrize(("scaling", "weight"), [("full", 0.953), ("delta", 0.5)])
def test_a_new_router_hardly_shrinks_outputs_under_full_scaling(base, scaling, weight):
    config = replace(base.config, mod_config=MoDConfig(router_scaling=scaling))
    router = initial_model(config, None, seed=0).model.layers[1].router
    assert float(router.bias.sigmoid()) == pytest.approx(weight, abs=1e-3)
    assert 0 < float(router.weight.std()) < 2 * SMALL_DEVIATION


def test_two_models_with_one_seed_agree_in_common_tensors(base):
    arms = [
        dict(initial_model(replace(base.config, mod_config=mod), None, seed=3).named_parameters())
        for mod in (None, MoDConfig())
    ]
    assert len(arms[0]) < len(arms[1])
    for name, parameter in arms[0].items():
        assert torch.equal(parameter, arms[1][name]), name


def test_tied_weights_are_one_parameter(base):
    text = replace(base.config.text_config, tie_word_embeddings=True)
    model = initial_model(replace(base.config, text_config=text), None, seed=0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())
