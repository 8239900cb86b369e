"""adapter_config.json: what is not plain LoRA is refused, with the names and values of the file."""

import json

import pytest

from mod_edge.errors import CheckpointError, ConfigError
from mod_edge.model.importing.adapter_config import read_adapter_config

# As VideoLLM-online's file has it, and what peft 0.21 adds to it.
RELEASED = {
    "peft_type": "LORA",
    "r": 128,
    "lora_alpha": 256,
    "lora_dropout": 0.05,
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": ["connector"],
    "task_type": "CAUSAL_LM",
    "inference_mode": True,
    "target_modules": "model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)|lm_head$",
    "base_model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct",
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
    "layers_pattern": None,
    "init_lora_weights": True,
    "fan_in_fan_out": False,
    "loftq_config": {},
    "megatron_core": "megatron.core",
    "target_parameters": None,
}


def written(folder, fields):
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def message_of(folder, fields):
    with pytest.raises(ConfigError) as caught:
        read_adapter_config(written(folder, fields))
    return str(caught.value)


def test_the_released_config_is_read(tmp_path):
    config = read_adapter_config(written(tmp_path, RELEASED))
    assert config.rank_of("lm_head") == 128
    assert config.scale_of("lm_head") == 2.0
    assert config.base_name == "meta-llama/Meta-Llama-3-8B-Instruct"
    for module in ("model.layers.31.mlp.down_proj", "lm_head"):
        assert config.targets(module)
    for module in ("model.embed_tokens", "connector.0", "model.norm", "a.lm_head"):
        assert not config.targets(module)
    assert config.saves("connector.2.bias")
    assert not config.saves("lm_head.weight")


@pytest.mark.parametrize(
    "peft_type",
    ["IA3", "ADALORA", "LOHA", "LOKR", "VERA", "PROMPT_TUNING", "OFT", "TRAINABLE_TOKENS", None, 3],
)
def test_another_kind_of_adapter_is_refused_by_name(tmp_path, peft_type):
    message = message_of(tmp_path, {"peft_type": peft_type})
    assert f"adapter_config.json: peft_type={peft_type!r}, wanted 'LORA'" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_dora", True),
        ("use_qalora", True),
        ("fan_in_fan_out", True),
        ("lora_bias", True),
        ("use_bdlora", {"nblocks": 2}),
        ("velora_config", {"scale": 1.0}),
        ("kasa_config", {"beta": 1}),
        ("monteclora_config", {"num_samples": 8}),
        ("arrow_config", {"top_k": 3}),
        ("alora_invocation_tokens", [1, 2]),
        ("layer_replication", [[0, 4], [2, 5]]),
        ("megatron_config", {"a": 1}),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("a_field_of_the_future", 0.5),
    ],
)
def test_a_variant_of_lora_is_refused_by_name_and_value(tmp_path, name, value):
    message = message_of(tmp_path, RELEASED | {name: value})
    assert f"adapter_config.json: {name}={value!r} is not merged; merge the adapter with" in message


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_a_field_of_the_future_that_is_off_is_no_fault(tmp_path, value):
    read_adapter_config(written(tmp_path, RELEASED | {"a_field_of_the_future": value}))


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_an_initialisation_that_changes_the_base_is_refused(tmp_path, init):
    message = message_of(tmp_path, RELEASED | {"init_lora_weights": init})
    assert f"init_lora_weights={init!r} changes the base's weights before training" in message


@pytest.mark.parametrize("init", [False, "gaussian", "eva", "orthogonal", None])
def test_an_initialisation_of_the_factors_alone_is_fine(tmp_path, init):
    read_adapter_config(written(tmp_path, RELEASED | {"init_lora_weights": init}))


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"r": 0}, "r=0, wanted a whole number of at least 1"),
        ({"r": 8.0}, "r=8.0, wanted a whole number of at least 1"),
        ({"r": None}, "r=None, wanted a whole number of at least 1"),
        ({"lora_alpha": "16"}, "lora_alpha='16', wanted a number"),
        ({"use_rslora": 1}, "use_rslora=1, wanted true or false"),
        ({"bias": "some"}, "bias='some', wanted one of none, lora_only, all"),
        ({"bias": ["none"]}, "bias=['none'], wanted one of none, lora_only, all"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern={'q_proj': 0}, wanted an object of ranks"),
        ({"alpha_pattern": [3]}, "alpha_pattern=[3], wanted an object of numbers"),
        ({"alpha_pattern": {"(q": 3}}, "alpha_pattern: '(q' is not a regular expression (missing"),
        ({"target_modules": "(q_proj"}, "target_modules: '(q_proj' is not a regular expression"),
        ({"target_modules": None}, "target_modules=None, wanted a list of names, or a regular"),
        ({"target_modules": ["q", 3]}, "target_modules=['q', 3], wanted a list of names, or a reg"),
        ({"modules_to_save": {}}, "modules_to_save={}, wanted a list of names"),
        ({"modules_to_save": ["("]}, "modules_to_save: '(' is not a regular expression"),
        (
            {"layers_to_transform": [1, 2]},
            "layers_to_transform=[1, 2] with target_modules='model.*(q_proj|",
        ),
        ({"layers_to_transform": [-1]}, "layers_to_transform=[-1], wanted layers' indices"),
        ({"trainable_token_indices": [1, 1]}, "trainable_token_indices=[1, 1], wanted distinct"),
        ({"trainable_token_indices": [True]}, "trainable_token_indices=[True], wanted distinct"),
        (
            {"trainable_token_indices": {"wte": [1]}},
            "trainable_token_indices of wte, wanted model.embed_tokens or lm_head",
        ),
    ],
)
def test_a_value_that_is_not_understood_is_refused_by_name(tmp_path, fields, fault):
    assert fault in message_of(tmp_path, RELEASED | fields)


def test_all_faults_of_the_config_are_in_one_message(tmp_path):
    message = message_of(tmp_path, RELEASED | {"use_dora": True, "r": "8", "bias": 3})
    for fault in ("use_dora=True", "r='8'", "bias=3"):
        assert fault in message


def test_a_folder_that_is_not_an_adapter_is_refused(tmp_path):
    for folder, fault in ((tmp_path, "no adapter_config.json"), (tmp_path / "x", "no such folder")):
        with pytest.raises(CheckpointError, match=rf"{folder.name} is not an adapter \({fault}\)"):
            read_adapter_config(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"r": 1'])
def test_a_damaged_config_is_refused(tmp_path, text):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json (is not|contains)"):
        read_adapter_config(tmp_path)
