"""Adapters that peft writes, merged as peft merges them, or refused by name and value."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from mod_edge.config import EMBEDDING_WEIGHT, HEAD_WEIGHT, TextConfig
from mod_edge.errors import CheckpointError, ConfigError
from mod_edge.model.importing import adapter as adapter_module
from mod_edge.model.importing.adapter import Adapter

TEXT = TextConfig(24, 40, 3, 4, 2, 8, 53)
VISION_SIZE = 10
# VideoLLM-online's released adapter_config.json, word for word.
RELEASED_TARGETS = "model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)|lm_head$"
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PREFIX = "base_model.model."
# Measured 4.8e-7; a forgotten alpha / rank gives at least 0.4.
MERGED = {"atol": 1e-6, "rtol": 0.0}


def llama(text=TEXT, *, seed=0):
    """A model of transformers with `text` and VideoLLM-online's connector, randomly filled."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**hugging_face_fields(text)))
    return filled(with_connector(model, text), seed)


def qwen2():
    """A Qwen2 model with `TEXT`, which has biases."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = Qwen2ForCausalLM(Qwen2Config(**hugging_face_fields(TEXT)))
    return filled(with_connector(model, TEXT), 0)


def hugging_face_fields(text):
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    fields += ("num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings")
    return {name: getattr(text, name) for name in fields}


def with_connector(model, text):
    size = text.hidden_size
    model.connector = nn.Sequential(nn.Linear(VISION_SIZE, size), nn.GELU(), nn.Linear(size, size))
    return model.eval().requires_grad_(False)


def filled(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def decoder_of(model):
    """The decoder's tensors, without a tied head; copies."""
    tensors = {n: p.clone() for n, p in model.named_parameters() if not n.startswith("connector")}
    if model.config.tie_word_embeddings:
        tensors.pop(HEAD_WEIGHT, None)
    return tensors


def trained(model, folder, **fields):
    """The model with an adapter whose every trainable number is random, written into `folder`."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**{"r": 4, "lora_alpha": 14, "target_modules": ["q_proj"], **fields})
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(0.25 * torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(folder)
    return wrapped.eval()


def opened(folder, base, text=TEXT):
    shapes = {name: tuple(tensor.shape) for name, tensor in base.items()}
    return Adapter(folder, folder.parent / "base", text, shapes)


def merged(adapter, base):
    """All tensors of the merged decoder and connector."""
    names = {**base, **adapter.saved}
    if not adapter.text.tie_word_embeddings:
        names[HEAD_WEIGHT] = None
    tensors = {}
    for name in names:
        own = name if name in base else EMBEDDING_WEIGHT  # a head that the base ties
        tensor = adapter.read(name) if name in adapter.saved else base[own].clone()
        tensors[name] = adapter.merged(name, tensor)
    return tensors


def assert_merged_as_by_peft(model, folder, **fields):
    """Compare every tensor with peft's own merge, and say that it changed something."""
    base = decoder_of(model)
    theirs = trained(model, folder, **fields).merge_and_unload().state_dict()
    adapter = opened(folder, base)
    ours = merged(adapter, base)
    assert {*base} <= ours.keys() <= theirs.keys()
    for name, tensor in ours.items():
        assert_close(tensor, theirs[name], **MERGED, msg=lambda text, name=name: f"{name}: {text}")
    assert not all(torch.equal(base[name], ours[name]) for name in base)
    return adapter


pytestmark = [
    # peft reads a property that transformers 5.23 deprecates
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    # peft says what it saves, and that a tied head needs care when it is merged
    pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
]


# ---- merged as peft merges ----


def test_the_released_adapter_is_merged_as_peft_merges_it(tmp_path):
    adapter = assert_merged_as_by_peft(
        llama(),
        tmp_path,
        r=8,
        lora_alpha=16,
        lora_dropout=0.05,
        target_modules=RELEASED_TARGETS,
        modules_to_save=["connector"],
        task_type="CAUSAL_LM",
    )
    names = set(load_file(tmp_path / "adapter_model.safetensors"))
    layers = range(TEXT.num_hidden_layers)
    assert names == {
        *(
            f"{PREFIX}model.layers.{layer}.{part}.{linear}.lora_{factor}.weight"
            for layer in layers
            for linear in LINEARS
            for part in ("self_attn" if linear[0] in "qkvo" else "mlp",)
            for factor in "AB"
        ),
        *(f"{PREFIX}lm_head.{each}.weight" for each in ("lora_A", "lora_B", "base_layer")),
        *(f"{PREFIX}connector.{index}.{kind}" for index in (0, 2) for kind in ("weight", "bias")),
    }
    assert len(names) == 455 - (32 - len(layers)) * 14
    connector = {f"connector.{index}.{kind}" for index in (0, 2) for kind in ("weight", "bias")}
    assert adapter.saved.keys() == {HEAD_WEIGHT, *connector}
    assert adapter.text == TEXT
    assert not adapter.has_routers


@pytest.mark.parametrize("linear", LINEARS)
def test_an_adapter_of_one_kind_of_linear_is_merged(tmp_path, linear):
    assert_merged_as_by_peft(llama(), tmp_path, target_modules=[linear])


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"use_rslora": True, "r": 9}, id="rslora"),
        pytest.param({"lora_alpha": 1}, id="a small alpha"),
        pytest.param(
            {
                "target_modules": ["q_proj", "up_proj"],
                # in the order of the alphabet, in which peft writes and reads them
                "rank_pattern": {
                    r"layers\.1\..*": 2,
                    "model.layers.0.mlp.up_proj": 7,
                    "up_proj": 3,
                },
                "alpha_pattern": {"(mlp.up|0.*.q)_proj": 9, "layers.2.self_attn.q_proj": 5},
            },
            id="ranks and alphas by module, the first match counts",
        ),
        pytest.param(
            {"use_rslora": True, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 0.5}},
            id="rslora with patterns",
        ),
        pytest.param(
            {"target_modules": "all-linear", "modules_to_save": ["connector"]}, id="all-linear"
        ),
        pytest.param(
            {"target_modules": ["model.layers.1.mlp.up_proj", "v_proj"]}, id="a full name"
        ),
        pytest.param({"layers_to_transform": [0, 2]}, id="layers"),
        pytest.param({"layers_to_transform": 1, "layers_pattern": "layers"}, id="one layer"),
        pytest.param(
            {"target_modules": LINEARS, "exclude_modules": ["layers.1.mlp.up_proj", "k_proj"]},
            id="excluded names",
        ),
        pytest.param(
            {"target_modules": r".*\.(q|up)_proj", "exclude_modules": r".*\.[02]\..*"},
            id="an excluded expression",
        ),
        pytest.param({"target_modules": ["embed_tokens", "q_proj"]}, id="embedding"),
        pytest.param({"target_modules": ["embed_tokens", "lm_head"]}, id="embedding and head"),
        pytest.param(
            {"modules_to_save": ["embed_tokens", "lm_head", "connector"]}, id="saved embedding"
        ),
        pytest.param({"modules_to_save": ["norm"]}, id="saved norms"),
        pytest.param(
            {"modules_to_save": ["layers.1.mlp"], "target_modules": LINEARS}, id="saved mlp"
        ),
        pytest.param({"trainable_token_indices": [5, 3, 52]}, id="rows of the embedding"),
        pytest.param(
            {"trainable_token_indices": {"embed_tokens": [7], "lm_head": [1, 0]}},
            id="rows of embedding and head",
        ),
    ],
)
def test_every_field_that_is_honoured_is_merged_as_peft_merges_it(tmp_path, fields):
    assert_merged_as_by_peft(llama(), tmp_path, **fields)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_trained_biases_are_taken(tmp_path, bias):
    fields = {"target_modules": ["q_proj", "o_proj"], "modules_to_save": ["connector"]}
    assert_merged_as_by_peft(qwen2(), tmp_path, bias=bias, **fields)


def test_a_saved_bias_that_peft_writes_under_two_names_is_taken_once(tmp_path):
    """With `bias` "all", peft writes the connector's biases three times, one from before."""
    trained(llama(), tmp_path, bias="all", modules_to_save=["connector"])
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    spelled = [name for name in names if name.endswith(".2.bias")]
    assert [name.removeprefix(f"{PREFIX}connector.") for name in sorted(spelled)] == [
        *("2.bias", "modules_to_save.default.2.bias", "original_module.2.bias")
    ]
    base = decoder_of(llama())
    assert torch.equal(
        opened(tmp_path, base).read("connector.2.bias"),
        load_file(tmp_path / "adapter_model.safetensors")[f"{PREFIX}connector.2.bias"],
    )


# ---- embedding and head: resized, or tied in the base ----


@pytest.mark.parametrize("fields", [{}, {"target_modules": ["embed_tokens", "lm_head"]}])
def test_a_resized_vocabulary_changes_the_config(tmp_path, fields):
    base = decoder_of(llama())
    model = llama(replace(TEXT, vocab_size=56), seed=3)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj"], **fields})
    wrapped = get_peft_model(model, config)
    wrapped.save_pretrained(tmp_path, save_embedding_layers=True)
    adapter = opened(tmp_path, base)
    assert adapter.text == replace(TEXT, vocab_size=56)
    theirs = wrapped.merge_and_unload().state_dict()
    ours = merged(adapter, base)
    for name in (EMBEDDING_WEIGHT, HEAD_WEIGHT):
        assert_close(ours[name], theirs[name], **MERGED)


TIED = replace(TEXT, tie_word_embeddings=True)


@pytest.mark.parametrize(
    ("fields", "is_tied"),
    [
        ({"target_modules": RELEASED_TARGETS}, False),
        ({"target_modules": ["embed_tokens", "q_proj"]}, False),
        ({"target_modules": ["embed_tokens", "lm_head"]}, False),
        ({"modules_to_save": ["lm_head"]}, False),
        ({"modules_to_save": ["embed_tokens"]}, False),
        ({"target_modules": LINEARS}, True),
        ({"trainable_token_indices": [4, 9]}, True),
    ],
)
def test_a_tied_head_that_the_adapter_changes_becomes_a_tensor_of_its_own(
    tmp_path, fields, is_tied
):
    model = llama(TIED)
    base = decoder_of(model)
    theirs = trained(model, tmp_path, **fields)  # not merged: peft would change both with one
    adapter = opened(tmp_path, base, TIED)
    assert adapter.text == replace(TIED, tie_word_embeddings=is_tied)
    ours = llama(adapter.text, seed=5)
    tensors = {name: t for name, t in merged(adapter, base).items() if "connector" not in name}
    tensors.setdefault(HEAD_WEIGHT, tensors[EMBEDDING_WEIGHT])
    missing, unexpected = ours.load_state_dict(tensors, strict=False)
    assert unexpected == []
    assert all(name.startswith("connector.") for name in missing)
    ids = torch.arange(0, TEXT.vocab_size)[None]
    logits = theirs(input_ids=ids).logits
    # Measured 2.1e-5, of logits up to 6.6; the base's own logits differ by at least 4.9.
    assert_close(ours(input_ids=ids).logits, logits, atol=1e-4, rtol=0)


def test_an_untied_head_of_a_resized_embedding_is_refused(tmp_path):
    base = decoder_of(llama(TIED))
    trained(llama(replace(TIED, vocab_size=56)), tmp_path, modules_to_save=["embed_tokens"])
    with pytest.raises(
        CheckpointError, match=r"no 'base_model\.model\.lm_head\.weight', but .* 56 r"
    ):
        opened(tmp_path, base, TIED)


# ---- how it is merged ----


@pytest.mark.parametrize("block_numbers", [1, 24 * 7, 2**23])
def test_merging_in_blocks_of_rows_gives_the_same(tmp_path, monkeypatch, block_numbers):
    monkeypatch.setattr(adapter_module, "BLOCK_NUMBERS", block_numbers)
    assert_merged_as_by_peft(llama(), tmp_path, target_modules=["embed_tokens", "lm_head"])


def test_half_precision_is_rounded_once(tmp_path):
    model = llama()
    base = decoder_of(model)
    trained(model, tmp_path)
    name = "model.layers.1.self_attn.q_proj.weight"
    factors = load_file(tmp_path / "adapter_model.safetensors")
    a, b = (factors[f"{PREFIX}{name[:-7]}.lora_{part}.weight"] for part in "AB")
    half = {each: tensor.to(torch.bfloat16) for each, tensor in base.items()}
    wanted = (half[name].double() + 14 / 4 * b.double() @ a.double()).to(torch.bfloat16)
    ours = opened(tmp_path, half).merged(name, half[name].clone())
    assert ours.dtype == torch.bfloat16
    # A tie of two bfloat16 numbers may fall either way; rounding twice differs in 3 % of them.
    assert (ours != wanted).float().mean() < 0.005


def test_the_base_and_the_adapter_stay_as_they_are_on_the_disk(tmp_path):
    """Merging overwrites its argument, which may be a view of a mapped file."""
    model = llama()
    base = decoder_of(model)
    save_file(base, tmp_path / "base.safetensors")
    trained(model, tmp_path / "adapter", target_modules=["lm_head"])
    files = [tmp_path / "base.safetensors", tmp_path / "adapter" / "adapter_model.safetensors"]
    before = [file.read_bytes() for file in files]
    adapter = opened(tmp_path / "adapter", base)
    with safe_open(files[0], framework="pt") as file:
        adapter.merged(HEAD_WEIGHT, file.get_tensor(HEAD_WEIGHT))
    adapter.merged(HEAD_WEIGHT, adapter.read(HEAD_WEIGHT))
    assert [file.read_bytes() for file in files] == before


def test_a_result_beyond_half_precision_is_refused(tmp_path):
    model = llama()
    base = {name: tensor.half() for name, tensor in decoder_of(model).items()}
    trained(model, tmp_path, lora_alpha=1e6)
    name = "model.layers.1.self_attn.q_proj.weight"
    with pytest.raises(CheckpointError, match=r"above the largest of torch\.float16"):
        opened(tmp_path, base).merged(name, base[name])


def test_a_number_of_the_base_that_is_not_finite_stays_so(tmp_path):
    """Whoever reads the base's weights reports them all, and not as the adapter's fault."""
    model = llama()
    base = decoder_of(model)
    trained(model, tmp_path)
    name = "model.layers.1.self_attn.q_proj.weight"
    base[name][2, 3] = math.inf
    assert opened(tmp_path, base).merged(name, base[name])[2, 3] == math.inf


# ---- other spellings ----


def respell(folder, change):
    """Rename the tensors of an adapter's file; `change` returns None for those to remove."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({new: t for old, t in tensors.items() if (new := change(old)) is not None}, path)


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.removeprefix(PREFIX),
        lambda name: name.replace("connector.", "connector.modules_to_save.default.").replace(
            ".weight", ".mine.weight" if "lora" in name else ".weight"
        ),
        lambda name: name.replace("connector.", "connector.modules_to_save."),
    ],
    ids=["no prefix", "adapters' names", "an older version"],
)
def test_other_spellings_of_the_names_are_the_same_adapter(tmp_path, change):
    model = llama()
    base = decoder_of(model)
    trained(model, tmp_path, target_modules=RELEASED_TARGETS, modules_to_save=["connector"])
    before = merged(opened(tmp_path, base), base)
    respell(tmp_path, change)
    after = merged(opened(tmp_path, base), base)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_routers_in_the_adapter_are_found(tmp_path):
    model = llama()
    base = decoder_of(model)
    for index in (0, 2):
        model.model.layers[index].router = nn.Linear(TEXT.hidden_size, 1)
    wrapped = trained(model, tmp_path, modules_to_save=["router"])
    adapter = opened(tmp_path, base)
    assert adapter.has_routers
    assert adapter.saved == {}
    routers = adapter.routers([0, 2])
    theirs = wrapped.merge_and_unload().state_dict()
    for layer in (0, 2):
        for kind in ("weight", "bias"):
            name = f"model.layers.{layer}.router.{kind}"
            assert torch.equal(routers.read(name), theirs[name])
    with pytest.raises(CheckpointError, match="of layers 0, 2, the MoD layers are 0, 1"):
        adapter.routers([0, 1])


# ---- refused ----


def message_of(folder, base, text=TEXT, error=CheckpointError):
    with pytest.raises(error) as caught:
        opened(folder, base, text)
    return str(caught.value)


@pytest.fixture
def adapted(tmp_path):
    """A folder with an adapter like the released one, and the base's decoder."""
    model = llama()
    base = decoder_of(model)
    model.config._name_or_path = "somebody/base"
    fields = {"target_modules": RELEASED_TARGETS, "modules_to_save": ["connector"]}
    trained(model, tmp_path / "adapter", **fields)
    set_field(tmp_path / "adapter", "base_model_name_or_path", "somebody/base")
    return tmp_path / "adapter", base


def set_field(folder, name, value):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            replace(TEXT, num_hidden_layers=4),
            f"no '{PREFIX}model.layers.3.self_attn.q_proj.lora_A.weight'; no '{PREFIX}model.layers."
            "3.self_attn.q_proj.lora_B.weight'",
        ),
        (
            replace(TEXT, num_hidden_layers=2),
            f"'{PREFIX}model.layers.2.mlp.down_proj.lora_A.weight' changes a module that the base "
            "does not have",
        ),
        (
            replace(TEXT, intermediate_size=44),
            f"'{PREFIX}model.layers.0.mlp.gate_proj.lora_B.weight' is F32 [40, 4] in "
            "adapter_model.safetensors, wanted [44, 4]",
        ),
        (
            replace(TEXT, hidden_size=20),
            f"'{PREFIX}connector.2.weight' is F32 [24, 24] in adapter_model.safetensors, wanted "
            "[20, 20]",
        ),
        (
            replace(TEXT, vocab_size=60),
            f"no '{PREFIX}model.embed_tokens.weight', but '{PREFIX}lm_head.base_layer.weight' has "
            "53 rows (the base has 60)",
        ),
    ],
)
def test_an_adapter_for_another_base_is_refused_with_both_names(adapted, text, fault, monkeypatch):
    monkeypatch.setattr(adapter_module, "NUM_FAULTS_SHOWN", 99)
    folder, _ = adapted
    message = message_of(folder, decoder_of(llama(text)), text)
    assert message.startswith(
        f"{folder} (trained on 'somebody/base') does not fit the base {folder.parent / 'base'}: "
    )
    assert fault in message


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        pytest.param(
            lambda name: None if "layers.1.mlp.up_proj.lora_A" in name else name,
            f"no '{PREFIX}model.layers.1.mlp.up_proj.lora_A.weight'",
            id="one factor",
        ),
        pytest.param(
            lambda name: None if "layers.1." in name else name,
            f"no '{PREFIX}model.layers.1.self_attn.q_proj.lora_A.weight'",
            id="a layer is missing",
        ),
        pytest.param(
            lambda name: name.replace("model.layers.2", "vision_tower.layers.2"),
            f"'{PREFIX}vision_tower.layers.2.self_attn.q_proj.lora_A.weight' changes a module that "
            "the base does not have",
            id="a vision tower",
        ),
        pytest.param(
            lambda name: name.replace("connector.2.bias", "projector.2.bias"),
            f"'{PREFIX}projector.2.bias' is not a tensor of the decoder or the connector; no "
            f"'{PREFIX}connector.2.bias' (modules_to_save=['connector'])",
            id="another connector",
        ),
        pytest.param(
            lambda name: name.replace(
                "0.mlp.up_proj.lora_A.weight", "0.mlp.up_proj.lora_magnitude"
            ),
            f"'{PREFIX}model.layers.0.mlp.up_proj.lora_magnitude' is not a tensor of the decoder",
            id="a magnitude",
        ),
        pytest.param(
            lambda name: name.replace(
                "0.mlp.up_proj.lora_A.weight", "0.mlp.up_proj.lora_embedding_A"
            ),
            f"'{PREFIX}model.layers.0.mlp.up_proj.lora_embedding_A' is not a factor of this kind",
            id="an embedding's factor",
        ),
        pytest.param(
            lambda name: name.replace("1.mlp.up_proj.lora_A.", "0.mlp.up_proj.lora_A.default."),
            "are the same tensor, but differ",
            id="two of one factor",
        ),
    ],
)
def test_tensors_that_would_be_ignored_or_missing_are_faults(adapted, change, fault, monkeypatch):
    monkeypatch.setattr(adapter_module, "NUM_FAULTS_SHOWN", 99)
    folder, base = adapted
    respell(folder, change)
    assert fault in message_of(folder, base)


def test_factors_of_modules_that_are_not_targets_are_faults(adapted):
    folder, base = adapted
    set_field(folder, "target_modules", ["q_proj", "lm_head"])
    message = message_of(folder, base)
    assert (
        f"'{PREFIX}model.layers.0.self_attn.k_proj.lora_A.weight' changes a module that "
        "target_modules does not select"
    ) in message
    assert "and 24 more" in message


def test_rows_must_fit_the_vocabulary_and_the_config(tmp_path):
    model = llama()
    base = decoder_of(model)
    trained(model, tmp_path, trainable_token_indices=[3, 8])
    set_field(tmp_path, "trainable_token_indices", [3, 8, 53])
    name = f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"
    assert (
        f"'{name}' is F32 [2, 24] in adapter_model.safetensors, wanted [3, 24]; "
        "trainable_token_indices has 53, wanted less than 53, the rows of model.embed_tokens"
    ) in message_of(tmp_path, base)
    set_field(tmp_path, "trainable_token_indices", None)
    assert f"{name!r} is not in trainable_token_indices" in message_of(tmp_path, base)


def test_two_trained_tensors_of_what_the_base_ties_are_faults(tmp_path):
    model = llama(TIED)
    base = decoder_of(model)
    trained(model, tmp_path, target_modules=["lm_head"], trainable_token_indices=None)
    set_field(tmp_path, "ensure_weight_tying", True)
    message = message_of(tmp_path, base, TIED)
    assert "ensure_weight_tying=true with changes of lm_head.weight, which is not merged" in message


def test_numbers_that_are_not_finite_are_refused_by_name(adapted):
    folder, base = adapted
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[f"{PREFIX}connector.0.bias"][1] = math.nan
    save_file(tensors, path)
    fault = f"'{PREFIX}connector.0.bias' (1 NaN, 0 infinite of 24)"
    assert fault in message_of(folder, base)


def test_a_pickled_adapter_is_refused_with_the_conversion(adapted):
    folder, base = adapted
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "adapter_model.bin is pickled and not read" in message_of(folder, base)


def test_an_adapter_without_weights_is_refused(adapted):
    folder, base = adapted
    (folder / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors does not exist" in message_of(folder, base)


def test_an_adapter_that_is_not_plain_lora_is_refused_before_its_weights_are_read(adapted):
    folder, base = adapted
    set_field(folder, "use_dora", True)
    (folder / "adapter_model.safetensors").unlink()
    assert "use_dora=True is not merged" in message_of(folder, base, error=ConfigError)
