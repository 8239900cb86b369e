"""Imported checkpoints, judged by transformers on the folders that it wrote."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mod_edge.config import MoDConfig
from mod_edge.errors import CheckpointError, ConfigError
from mod_edge.model.checkpoint import CHECKPOINT, Checkpoint
from mod_edge.model.importing.connector import connector_shapes
from mod_edge.model.importing.import_plan import ImportSources
from mod_edge.model.importing.importer import import_checkpoint
from mod_edge.plan.chat import TEMPLATES
from mod_edge.plan.layout import step_layout
from mod_edge.plan.protocol import Protocol
from tests.hugging_face_folders import change_config, write_llm, write_vision

pytestmark = pytest.mark.numeric

# Relative to the largest logit, on x86-64: measured 1.5e-6; a bias left out gives 0.1 and more.
RTOL = 1e-5
MERGED_ATOL = 1e-6  # a forgotten scale gives 1 and more
REAL_FOLDERS = ("MOD_EDGE_REAL_LLM", "MOD_EDGE_REAL_VIT")  # environment variables
PROMPT = (7, 300, 41, 5, 511, 96, 97, 300, 12, 64, 201)
NUM_NEW = 12
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,  # short enough to use all three ranges
}
SPLIT_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24}


def rope_of_old(config):
    """The config as transformers 4 wrote it."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {**rope, "rope_type": kind}
    config["torch_dtype"] = config.pop("dtype")


def rope_of_first(config):
    """The config as it was when a type of RoPE was called `type`."""
    rope_of_old(config)
    scaling = config["rope_scaling"]
    scaling["type"] = scaling.pop("rope_type")


def as_written(_config):
    """The config as transformers 5 writes it."""


FOLDERS = {  # architecture, fields, change of config.json
    "llama": ("Llama", {}, as_written),
    "llama of old, tied": ("Llama", {"tie_word_embeddings": True, **SPLIT_HEADS}, rope_of_old),
    "llama, llama3 rope": (
        "Llama",
        {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}, **SPLIT_HEADS},
        as_written,
    ),
    "llama, llama3 rope of old": (
        "Llama",
        {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}, **SPLIT_HEADS},
        rope_of_old,
    ),
    "llama, first linear rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        rope_of_first,
    ),
    "mistral": ("Mistral", {"sliding_window": None}, as_written),
    "qwen2": ("Qwen2", SPLIT_HEADS, as_written),
    "qwen3, tied": ("Qwen3", {"tie_word_embeddings": True}, as_written),
}


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    return write_vision(tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_llm(tmp_path_factory.mktemp("llm"))


@pytest.mark.parametrize("name", FOLDERS)
def test_an_imported_decoder_has_the_logits_and_the_text_of_transformers(tmp_path, vision, name):
    from transformers import AutoModelForCausalLM

    architecture, fields, change = FOLDERS[name]
    theirs = write_llm(tmp_path / "theirs", architecture, max_shard_size="60KB", **fields)
    assert len(list(theirs.glob("*.safetensors"))) > 3
    change_config(theirs, change)
    judge = AutoModelForCausalLM.from_pretrained(theirs, attn_implementation="eager")
    import_checkpoint(ImportSources(theirs, vision), tmp_path / "ours")
    model = Checkpoint(tmp_path / "ours").load_model()
    prompt = torch.tensor([PROMPT])
    text = judge.generate(prompt, max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=-1)[0]
    logits = judge(text[None]).logits[0]
    ours = model.full_forward(model.model.embed_tokens(text), step_layout((len(text),), 10, 10))
    assert (ours - logits).abs().max() <= RTOL * logits.abs().max()
    said = list(PROMPT)
    for _ in range(NUM_NEW):
        embeds = model.model.embed_tokens(torch.tensor(said))
        said.append(int(model.full_forward(embeds, step_layout((len(said),), 10, 10))[-1].argmax()))
    assert said == text.tolist()


def tensors_of(folder):
    return {
        name: each
        for file in folder.glob("*.safetensors")
        for name, each in load_file(file).items()
    }


def test_every_tensor_keeps_its_bits_and_its_dtype(tmp_path, vision):
    llm = write_llm(tmp_path / "llm", "Qwen2", dtype=torch.bfloat16)
    path = tmp_path / "connector.safetensors"
    shapes = connector_shapes(32, 80)
    connector = {name: torch.randn(shape, dtype=torch.float16) for name, shape in shapes.items()}
    save_file(connector, path)
    report = import_checkpoint(ImportSources(llm, vision, path), tmp_path / "ours")
    ours = tensors_of(tmp_path / "ours")
    theirs = tensors_of(llm) | connector
    theirs |= {f"vision_model.{name}": tensor for name, tensor in tensors_of(vision).items()}
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name
    assert report.config.dtype == "bfloat16"
    assert report.config.untrained_parts == ()
    assert report.size_bytes == sum(tensor.nbytes for tensor in ours.values())
    assert CHECKPOINT.foreign_files(tmp_path / "ours") == []


def test_without_policy_and_connector_the_connector_alone_is_untrained(tmp_path, llm, vision):
    one, two = (import_checkpoint(ImportSources(llm, vision), tmp_path / n) for n in ("1", "2"))
    assert one.config.mod_config is None
    assert one.config.untrained_parts == ("connector",)
    assert two.config == one.config
    assert Checkpoint(tmp_path / "1").fingerprint() == Checkpoint(tmp_path / "2").fingerprint()


def test_mod_without_routers_computes_the_same_text_as_full_computation(tmp_path, llm, vision):
    sources = ImportSources(llm, vision)
    mod = MoDConfig("all", keep_ratio=0.3)
    report = import_checkpoint(sources, tmp_path / "mod", mod=mod)
    assert report.config.untrained_parts == ("connector", "router")
    assert report.config.mod_layers == (0, 1, 2)
    import_checkpoint(sources, tmp_path / "full")
    ours, theirs = (Checkpoint(tmp_path / name).load_model() for name in ("mod", "full"))
    embeds = ours.model.embed_tokens(torch.tensor(PROMPT))
    layout = step_layout((len(PROMPT),), 10, 3)
    assert torch.equal(ours.full_forward(embeds, layout), theirs.full_forward(embeds, layout))


def test_routers_of_a_file_are_those_of_the_checkpoint(tmp_path, llm, vision):
    routers = {
        f"model.layers.1.router.{name}": torch.randn(shape)
        for name, shape in (("weight", (1, 80)), ("bias", (1,)))
    }
    path = tmp_path / "routers.safetensors"
    save_file(routers, path)
    sources = ImportSources(llm, vision, routers=path)
    report = import_checkpoint(sources, tmp_path / "ours", mod=MoDConfig())
    assert report.config.untrained_parts == ("connector",)
    ours = tensors_of(tmp_path / "ours")
    assert all(torch.equal(ours[name], tensor) for name, tensor in routers.items())


def test_routers_that_no_layer_would_use_are_refused(tmp_path, llm, vision):
    sources = ImportSources(llm, vision, routers=tmp_path / "routers.safetensors")
    for mod, policy in ((None, "full computation"), (MoDConfig("layer_skip"), "layer_skip")):
        with pytest.raises(ConfigError, match=f"has routers, but {policy} has none"):
            import_checkpoint(sources, tmp_path / "ours", mod=mod)


# peft reads a property that transformers 5.23 deprecates, and says what it saves.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning")
def test_an_adapter_with_a_connector_is_merged_and_streams_as_videollm_online(tmp_path, vision):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    llm = write_llm(tmp_path / "llm")
    model = LlamaForCausalLM.from_pretrained(llm)
    model.connector = torch.nn.Sequential(
        torch.nn.Linear(32, 80), torch.nn.GELU(), torch.nn.Linear(80, 80)
    )
    targets = r"model.*(q_proj|down_proj)|lm_head$"
    wrapped = get_peft_model(
        model, LoraConfig(r=4, target_modules=targets, modules_to_save=["connector"])
    )
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2)
    wrapped.save_pretrained(tmp_path / "adapter")
    sources = ImportSources(llm, vision, adapter=tmp_path / "adapter")
    report = import_checkpoint(sources, tmp_path / "ours")
    merged = wrapped.merge_and_unload().state_dict()
    ours = tensors_of(tmp_path / "ours")
    for name, tensor in ours.items():
        if not name.startswith("vision_model."):
            assert torch.allclose(tensor, merged[name], rtol=0, atol=MERGED_ATOL), name
    assert report.config.untrained_parts == ()
    assert report.config.stream_config.chat_template == TEMPLATES["plain"]
    assert report.config.vision_config.frame_resize == "letterbox"  # the tower's own is stretch
    with pytest.raises(ConfigError, match="have a connector; omit --connector"):
        import_checkpoint(replace(sources, connector=llm), tmp_path / "other")


def test_a_tower_without_its_head_gives_frames_without_the_cls_token(tmp_path, llm):
    tower = write_vision(tmp_path / "tower", vision_use_head=False)
    report = import_checkpoint(ImportSources(llm, tower), tmp_path / "ours")
    assert not report.config.frame_token_cls
    assert report.config.frame_num_tokens == 9
    assert any("no pooling head" in note for note in report.notes)
    Checkpoint(tmp_path / "ours").load_model()


def test_an_interrupted_import_leaves_nothing(tmp_path, llm, vision):
    def interrupt(_name, done, _total):
        assert done > 0
        assert list(tmp_path.iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(ImportSources(llm, vision), tmp_path / "ours", on_step=interrupt)
    assert not list(tmp_path.iterdir())


def test_all_weights_that_are_not_numbers_are_named_with_their_file(tmp_path, llm, vision):
    folder = shutil.copytree(llm, tmp_path / "llm")
    names = ["model.norm.weight", "model.layers.2.mlp.up_proj.weight"]
    tensors = load_file(folder / "model.safetensors")
    tensors[names[0]][3] = torch.nan
    tensors[names[1]][-1, -1] = torch.inf
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(ImportSources(folder, vision), tmp_path / "ours")
    message = str(caught.value)
    assert message.startswith(str(folder / "model.safetensors"))
    assert f"'{names[0]}' (1 NaN, 0 infinite of 80)" in message
    assert f"'{names[1]}' (0 NaN, 1 infinite of {112 * 80})" in message
    assert not (tmp_path / "ours").exists()
    tower = load_file(vision / "model.safetensors")
    name = next(iter(tower))
    tower[name].view(-1)[0] = torch.nan
    damaged = shutil.copytree(vision, tmp_path / "vision")
    save_file(tower, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"norm\.weight") as caught:
        import_checkpoint(ImportSources(folder, damaged), tmp_path / "ours")
    assert all(str(each / "model.safetensors") in str(caught.value) for each in (folder, damaged))
    assert f"'{name}' (1 NaN" in str(caught.value)


@pytest.mark.slow
def test_a_real_model_knows_the_capital_of_france(tmp_path):
    llm, vision = (Path(os.environ.get(name, "")) for name in REAL_FOLDERS)
    if not all((folder / "model.safetensors").is_file() for folder in (llm, vision)):
        pytest.skip(f"set {' and '.join(REAL_FOLDERS)} to folders of SmolLM2-135M-Instruct and ViT")
    import_checkpoint(ImportSources(llm, vision), tmp_path / "ours")
    checkpoint = Checkpoint(tmp_path / "ours")
    model, stream = checkpoint.load_model(), checkpoint.config.stream_config
    protocol = Protocol(stream, checkpoint.tokenizer, threshold=0)
    ids = protocol.text_prompt("What is the capital of France?")
    said = []
    while not said or said[-1] not in protocol.stop_ids:
        fed = torch.tensor([*ids, *said])
        layout = step_layout((len(fed),), 10, 10)
        said.append(int(model.full_forward(model.model.embed_tokens(fed), layout)[-1].argmax()))
        assert len(said) < 20
    assert checkpoint.tokenizer.decode(said) == "The capital of France is Paris."
