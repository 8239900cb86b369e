"""Hugging Face decoders: configs as ours or refused by name and value, tensors by name."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from mod_edge.config import RopeScaling
from mod_edge.errors import CheckpointError, ConfigError
from mod_edge.model.checkpoint import tensor_shapes
from mod_edge.model.importing.decoder import (
    ARCHITECTURES,
    decoder_shapes,
    decoder_tensors,
    text_config_of,
    unknown_fields,
)
from mod_edge.model.importing.source_folder import SourceFolder

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "vocab_size": 67,
    "max_position_embeddings": 64,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def config_of(name="LlamaForCausalLM", **fields):
    model_type = ARCHITECTURES[name].model_type
    return LLAMA | {"architectures": [name], "model_type": model_type} | fields


def text_of(name="LlamaForCausalLM", **fields):
    return text_config_of(config_of(name, **fields), "config.json")


def refusal(name="LlamaForCausalLM", **fields):
    with pytest.raises(ConfigError) as caught:
        text_of(name, **fields)
    return str(caught.value)


def without(name, field):
    return {key: value for key, value in config_of(name).items() if key != field}


# ---- configs ----


def test_what_each_architecture_adds_is_in_the_config():
    texts = {
        "LlamaForCausalLM": text_of(),
        "MistralForCausalLM": text_of(
            "MistralForCausalLM", sliding_window=None, num_key_value_heads=2
        ),
        "Qwen2ForCausalLM": text_of("Qwen2ForCausalLM", num_key_value_heads=2),
        "Qwen3ForCausalLM": text_of("Qwen3ForCausalLM", num_key_value_heads=2),
    }
    assert texts.keys() == ARCHITECTURES.keys()
    has = {name: (text.attention_bias, text.qk_norm) for name, text in texts.items()}
    assert has == {
        "LlamaForCausalLM": (False, False),
        "MistralForCausalLM": (False, False),
        "Qwen2ForCausalLM": (True, False),
        "Qwen3ForCausalLM": (False, True),
    }
    assert texts["LlamaForCausalLM"].head_dim == 8
    assert texts["Qwen3ForCausalLM"].head_dim == 128


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_omitted_fields_have_the_values_of_transformers(name):
    from transformers import AutoConfig

    sizes = {"hidden_size": 128, "num_attention_heads": 32, "sliding_window": None}
    config = config_of(name, **sizes)
    fields = {key: value for key, value in config.items() if key != "model_type"}
    theirs = AutoConfig.for_model(config["model_type"], **fields)
    ours = text_config_of(config, "config.json")
    assert ours.num_key_value_heads == theirs.num_key_value_heads
    assert ours.head_dim == getattr(theirs, "head_dim", 128 // 32)  # Qwen2 computes it
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    window = ARCHITECTURES[name].defaults.get("sliding_window")
    assert window == type(theirs).sliding_window if window else name == "LlamaForCausalLM"


def test_heads_of_any_size_and_any_ratio_of_key_value_heads_are_taken():
    text = text_of(head_dim=80, num_attention_heads=5, num_key_value_heads=1)
    assert (text.head_dim, text.num_attention_heads, text.num_key_value_heads) == (80, 5, 1)
    assert text_of(num_key_value_heads=None).num_key_value_heads == 6


@pytest.mark.parametrize(
    ("fields", "theta", "scaling"),
    [
        ({}, 10000.0, None),
        ({"rope_theta": 500.0, "rope_scaling": None}, 500.0, None),
        ({"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}, 500.0, None),
        (
            {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
            500.0,
            RopeScaling(4.0, rope_type="linear"),
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
            5e5,
            RopeScaling(4.0, rope_type="linear"),
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE},
            5e5,
            RopeScaling(8.0, 1.0, 4.0, 32),
        ),
        (
            {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 5e5, "partial_rotary_factor": 1.0}},
            5e5,
            RopeScaling(8.0, 1.0, 4.0, 32),
        ),
    ],
)
def test_rope_is_read_in_both_spellings(fields, theta, scaling):
    text = text_of(**fields)
    assert text.rope_theta == theta
    assert text.rope_scaling == scaling


def test_llama3_rope_without_a_length_counts_turns_over_the_models_context():
    rope = {name: value for name, value in LLAMA3_ROPE.items() if not name.startswith("original")}
    scaling = text_of(rope_scaling=rope).rope_scaling
    assert scaling.original_max_position_embeddings == 64


@pytest.mark.parametrize(
    ("rope", "fault"),
    [
        ({"rope_type": "yarn", "factor": 4.0}, "rope_scaling.rope_type='yarn' is not supported"),
        ({"type": "dynamic", "factor": 2.0}, "rope_scaling.rope_type='dynamic' is not supported"),
        ({"rope_type": "longrope"}, "wanted one of default, linear, llama3"),
        ({"type": "linear", "rope_type": "llama3"}, "type='linear' contradicts"),
        ({"type": "mrope", "mrope_section": [1]}, "rope_type='mrope' is not supported"),
        ({"rope_type": "default", "mrope_section": [1]}, "mrope_section=[1] is not supported"),
        ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, "partial_rotary"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention={'rope_type'"),
        ({"rope_type": "linear"}, "factor"),
        ([1], "rope_scaling=[1], wanted an object"),
    ],
)
def test_rope_of_other_types_is_refused_by_name_and_value(rope, fault):
    assert fault in refusal(rope_scaling=rope)


def test_two_spellings_of_rope_that_contradict_each_other_are_refused():
    message = refusal(rope_theta=1e4, rope_parameters={"rope_theta": 5e5})
    assert "rope_theta=10000.0 contradicts rope_parameters.rope_theta=500000.0" in message
    assert "rope_parameters and rope_scaling contradict each other" in refusal(
        rope_parameters={"rope_type": "linear", "factor": 2.0}, rope_scaling=LLAMA3_ROPE
    )


@pytest.mark.parametrize(
    ("name", "fields", "fault"),
    [
        ("LlamaForCausalLM", {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ("LlamaForCausalLM", {"attention_bias": True}, "attention_bias=True is not supported"),
        ("Qwen3ForCausalLM", {"attention_bias": True}, "attention_bias=True is not supported"),
        ("LlamaForCausalLM", {"mlp_bias": True}, "mlp_bias=True is not supported"),
        ("LlamaForCausalLM", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ("Qwen2ForCausalLM", {"num_experts": 60}, "num_experts=60 is not supported"),
        ("LlamaForCausalLM", {"auto_map": {"AutoModel": "a.B"}}, "auto_map="),
        ("LlamaForCausalLM", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("MistralForCausalLM", {"sliding_window": 4096}, "sliding_window=4096: attention to"),
        ("LlamaForCausalLM", {"sliding_window": 8}, "sliding_window=8: attention to"),
        (
            "Qwen2ForCausalLM",
            {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2},
            "use_sliding_window=true with max_window_layers=2: attention to",
        ),
        (
            "Qwen3ForCausalLM",
            {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            "layer_types has sliding_attention, wanted full_attention alone",
        ),
    ],
)
def test_what_would_be_computed_otherwise_is_refused_by_name_and_value(name, fields, fault):
    assert fault in refusal(name, **{"sliding_window": None, "num_key_value_heads": 2} | fields)


def test_a_window_that_a_mistral_config_does_not_mention_is_the_one_of_transformers():
    message = refusal("MistralForCausalLM", num_key_value_heads=2)
    assert "sliding_window=4096, which mistral has where config.json does not say" in message


@pytest.mark.parametrize(
    "fields",
    [
        {"sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 1},
        {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3},
        {"sliding_window": 8, "layer_types": ["full_attention"] * 3, "use_sliding_window": True},
        {"sliding_window": 8, "attention_bias": True},  # Qwen2's biases do not depend on it
    ],
)
def test_a_window_that_no_qwen_layer_uses_is_no_window(fields):
    assert text_of("Qwen2ForCausalLM", num_key_value_heads=2, **fields).attention_bias


def test_all_faults_of_a_config_are_in_one_message():
    message = refusal(
        hidden_act="gelu", mlp_bias=True, sliding_window=8, rope_scaling={"type": "yarn"}
    )
    for name in ("hidden_act", "mlp_bias", "sliding_window", "yarn"):
        assert name in message
    message = refusal(num_key_value_heads=4, rms_norm_eps="small")
    assert "rms_norm_eps='small', wanted a finite number" in message
    assert "num_attention_heads=6, wanted a multiple of num_key_value_heads=4" in refusal(
        num_key_value_heads=4
    )


@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "vocab_size"])
def test_a_missing_size_is_named_alone(name):
    with pytest.raises(ConfigError) as caught:
        text_config_of(without("LlamaForCausalLM", name), "config.json")
    assert str(caught.value) == f"config.json: no field '{name}'"


@pytest.mark.parametrize(
    "architectures", [["MixtralForCausalLM"], ["Gemma2ForCausalLM"], None, ["SiglipVisionModel"]]
)
def test_other_architectures_are_named_with_those_that_are_taken(architectures):
    message = refusal(architectures=architectures)
    assert f"architectures={architectures!r}" in message
    assert all(name in message for name in ARCHITECTURES)


def test_an_image_text_model_is_refused_with_the_parts_to_give_instead():
    message = refusal(
        architectures=["LlavaForConditionalGeneration"],
        model_type="llava",
        text_config={"_name_or_path": "lmsys/vicuna-7b-v1.5"},
        vision_config={"model_type": "clip_vision_model"},
    )
    assert "LlavaForConditionalGeneration is an image-text model" in message
    assert "--llm its language model alone (its text_config says 'lmsys/vicuna-7b-v1.5')" in message


def test_a_model_type_of_another_architecture_is_refused():
    assert "model_type='mistral', wanted 'llama'" in refusal(model_type="mistral")


def test_fields_that_nobody_reads_are_told_and_do_not_matter():
    config = config_of(attention_dropout=0.1, made_by="someone", use_cache=False)
    assert text_config_of(config, "config.json") == text_of()
    assert unknown_fields(config) == ["made_by"]


# ---- tensors ----


@pytest.mark.parametrize(
    "text",
    [
        *({}, {"tie_word_embeddings": True}, {"attention_bias": True}, {"qk_norm": True}),
        {"num_key_value_heads": 3},
    ],
)
def test_the_tensors_are_those_of_our_reference(make_config, text):
    config = make_config(mod=None, **text)
    ours = {
        name: shape
        for name, shape in tensor_shapes(config).items()
        if name.startswith(("model.", "lm_head."))
    }
    assert decoder_shapes(config.text_config) == ours


def save_decoder(folder, change=lambda tensors: None, **fields):
    """A folder with a decoder of ones, changed by `change`, and its text config."""
    folder.mkdir(exist_ok=True)
    config = config_of(**fields)
    text = text_config_of(config, "config.json")
    tensors = {name: torch.ones(shape) for name, shape in decoder_shapes(text).items()}
    change(tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return SourceFolder(folder), text


def tensor_faults(folder, change, **fields):
    with pytest.raises(CheckpointError) as caught:
        decoder_tensors(*save_decoder(folder, change, **fields))
    return str(caught.value)


@pytest.mark.parametrize("is_tied", [False, True])
def test_every_tensor_has_its_name_in_the_files(tmp_path, is_tied):
    source, text = save_decoder(tmp_path, tie_word_embeddings=is_tied)
    names = decoder_tensors(source, text)
    assert set(names.values()) == load_file(tmp_path / "model.safetensors").keys()
    assert (HEAD in names) is not is_tied


def test_all_missing_unknown_and_misshapen_tensors_are_named_at_once(tmp_path):
    query, norm = "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"

    def change(tensors):
        del tensors[norm]
        tensors[query] = torch.ones(48, 40)
        tensors["model.layers.3.mlp.up_proj.weight"] = torch.ones(2)

    message = tensor_faults(tmp_path, change)
    assert f"no tensor '{norm}'" in message
    assert f"'{query}' is F32 [48, 40] in model.safetensors, config.json wants [48, 48]" in message
    assert "unknown tensor 'model.layers.3.mlp.up_proj.weight'" in message


def test_biases_that_the_architecture_does_not_have_are_unknown_tensors(tmp_path):
    bias = "model.layers.0.self_attn.q_proj.bias"
    message = tensor_faults(tmp_path, lambda tensors: tensors.update({bias: torch.ones(48)}))
    assert f"unknown tensor '{bias}'" in message


def test_a_missing_head_that_is_not_tied_is_explained(tmp_path):
    message = tensor_faults(tmp_path, lambda tensors: tensors.pop(HEAD))
    assert f"no tensor '{HEAD}', although config.json does not tie it to the embedding" in message


def test_a_tied_head_may_be_written_if_it_is_the_embedding(tmp_path):
    def copy(tensors):
        tensors[HEAD] = tensors[EMBEDDING].clone()

    assert HEAD not in decoder_tensors(*save_decoder(tmp_path, copy, tie_word_embeddings=True))
    message = tensor_faults(
        tmp_path,
        lambda tensors: tensors.update({HEAD: torch.zeros(67, 48)}),
        tie_word_embeddings=True,
    )
    assert "is not the same as" in message


def test_buffers_that_older_versions_wrote_are_ignored(tmp_path):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    source, text = save_decoder(tmp_path, lambda tensors: tensors.update({name: torch.ones(4)}))
    assert name not in decoder_tensors(source, text).values()
    assert math.prod(source.weights.tensors[EMBEDDING].shape) == 67 * 48
