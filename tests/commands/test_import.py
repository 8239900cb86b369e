"""`mod-edge import`: a checkpoint, or one line of error and nothing written."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.importing.connector import connector_shapes
from tests.commands.mod_edge_command import invoke, succeeds
from tests.hugging_face_folders import change_config, write_llm, write_vision

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with `llm` (in several files) and `vision`: copy it before changing it."""
    folder = tmp_path_factory.mktemp("published")
    write_llm(folder / "llm", max_shard_size="300KB")
    write_vision(folder / "vision")
    return folder


@pytest.fixture
def parts(published, tmp_path):
    """A copy of `published`, for a test to damage."""
    return shutil.copytree(published, tmp_path / "parts")


def options(parts):
    return ["--llm", parts / "llm", "--vision", parts / "vision"]


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(parts, *more, llm="llm", vision="vision"):
    """The one line of error of an import that must fail and write nothing."""
    before = files_of(parts.parent)
    arguments = ["--llm", parts / llm, "--vision", parts / vision, "-o", parts.parent / "out"]
    result = invoke("import", *arguments, *more)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("import: ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert lines[0].isprintable()
    assert files_of(parts.parent) == before
    assert not (parts.parent / "out").exists()
    return lines[0]


def change_weights(folder, change):
    """Change the tensors of `folder`, which has one file then."""
    shards = sorted(folder.glob("*.safetensors"))
    tensors = {name: tensor for file in shards for name, tensor in load_file(file).items()}
    for file in (*shards, folder / INDEX):
        file.unlink()
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


# ---- what it does ----


def test_a_checkpoint_is_written_and_what_is_untrained_is_said(parts):
    result = succeeds("import", *options(parts), "-o", parts / "out")
    first, *rows = result.stdout.splitlines()
    assert first.startswith(f"wrote {parts / 'out'}: ")
    assert "decoder  3 layers of 80, float32" in rows
    assert "routing  none: full computation" in rows
    assert any("chatml" in row for row in rows)
    assert "warning: the connector is untrained" in result.stderr
    assert "router" not in result.stderr
    assert Checkpoint(parts / "out").config.mod_config is None


def test_mod_layers_are_chosen_by_options_and_the_report_is_json(parts):
    mod = ("--policy", "mod", "--keep-ratio", "0.3", "--insertion", "all_deep")
    result = succeeds("import", *options(parts), *mod, "-o", parts / "out", "--json")
    report = json.loads(result.stdout)
    assert report["config"]["mod_config"]["keep_ratio"] == 0.3
    assert report["config"]["untrained_parts"] == ["connector", "router"]
    assert "warning: the routers are untrained" in result.stderr
    assert Checkpoint(parts / "out").config.mod_layers == (2,)


def test_an_existing_folder_is_replaced_only_with_force(parts):
    command = ("import", *options(parts), "-o", parts / "out")
    succeeds(*command)
    assert "exists already; use --force" in invoke(*command).stderr
    succeeds(*command, "--force")


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (["--keep-ratio", "0.5"], "--keep-ratio only with --policy mod"),
        (["--insertion", "all"], "--insertion only with --policy mod"),
        (["--routers", "r.safetensors"], "--routers only with --policy mod"),
        (["--policy", "half"], "'half', wanted full or mod"),
        (["--policy", "mod", "--insertion", "early_exit"], "'early_exit' is a baseline without"),
        (["--policy", "mod", "--insertion", "layer_skip"], "'layer_skip' is a baseline without"),
    ],
)
def test_options_that_contradict_each_other_are_a_usage_error(parts, more, fault):
    result = invoke("import", *options(parts), "-o", parts / "out", *more)
    assert result.exit_code == 2
    assert fault in " ".join(result.stderr.split())


def test_inspect_says_what_import_would_take(parts):
    printed = succeeds("inspect", parts / "llm").stdout
    assert "LlamaForCausalLM, for mod-edge import --llm" in printed
    assert "chatml" in printed
    document = json.loads(succeeds("inspect", parts / "vision", "--json").stdout)
    assert document["option"] == "--vision"
    assert document["parameters"].keys() == {"F32"}
    change_config(parts / "llm", lambda config: config.update(hidden_act="gelu"))
    result = invoke("inspect", parts / "llm")
    assert result.exit_code == 1
    assert "hidden_act='gelu' is not supported" in result.stderr


# ---- bad input ----


def shards_of(folder):
    return sorted(folder.glob("model-*.safetensors"))


def cut_off(folder):
    shard = shards_of(folder)[1]
    shard.write_bytes(shard.read_bytes()[:-7])


def lose_a_shard(folder):
    shards_of(folder)[1].unlink()


def repeat_a_tensor(folder):
    one, two = shards_of(folder)[:2]
    tensors = load_file(two)
    name = min(load_file(one))
    save_file({**tensors, name: load_file(one)[name]}, two, {"format": "pt"})


def pack_with(suffix, dtype):
    def change(tensors):
        weight = tensors.pop(QUERY)
        tensors[QUERY.removesuffix("weight") + suffix] = torch.ones(weight.shape).to(dtype)

    return lambda folder: change_weights(folder, change)


def poison(folder):
    change_weights(folder, lambda tensors: tensors["model.norm.weight"].fill_(torch.nan))


def forget_the_end(folder):
    change_config(folder, lambda config: config.pop("eos_token_id") and None)
    for name, field in (("generation_config", "eos_token_id"), ("tokenizer_config", "eos_token")):
        if (folder / f"{name}.json").exists():
            change_config(folder, lambda each, field=field: {**each, field: None}, f"{name}.json")


def enlarge_the_tokenizer(folder):
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.add_tokens([f"word{number}" for number in range(100)])
    tokenizer.save(path)


def llava(_config):
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": {"_name_or_path": "some/llm"},
        "vision_config": {},
    }


DAMAGES = {
    "a truncated shard": (cut_off, "is damaged or cut off"),
    "an index that names a missing shard": (lose_a_shard, "model-00002-of-0"),
    "two tensors of one name": (repeat_a_tensor, "tensors are in two files"),
    "GPTQ or AWQ tensors": (pack_with("qweight", torch.int32), "packed by quantization"),
    "fp8 tensors": (pack_with("weight", torch.float8_e4m3fn), "is F8_E4M3 [400, 80]"),
    "fp8 by config": (
        lambda folder: change_config(
            folder, lambda config: config.update(quantization_config={"quant_method": "fp8"})
        ),
        "quantization_config with quant_method='fp8'",
    ),
    "a NaN": (poison, "'model.norm.weight' (80 NaN, 0 infinite of 80)"),
    "no end token": (forget_the_end, "no end token"),
    "a tokenizer larger than the embedding": (
        enlarge_the_tokenizer,
        "is larger than the model's embedding",
    ),
    "an image-text model": (
        lambda folder: change_config(folder, llava),
        "is an image-text model",
    ),
    "another architecture": (
        lambda folder: change_config(
            folder, lambda config: config.update(architectures=["MixtralForCausalLM"])
        ),
        "wanted one of LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
    ),
    "a sliding window": (
        lambda folder: change_config(folder, lambda config: config.update(sliding_window=64)),
        "sliding_window=64: attention to a window",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_folder_is_one_line_and_nothing_is_written(parts, damage):
    change, fault = DAMAGES[damage]
    change(parts / "llm")
    assert fault in refusal(parts)


def test_a_folder_given_to_the_other_option_is_refused(parts):
    tower, decoder = parts / "vision", parts / "llm"
    says = (
        f"--llm {tower} is a vision tower (config.json has model_type='siglip_vision_model'), give "
        "it to --vision",
        f"--vision {decoder} is a language model (config.json has model_type='llama'), give it to "
        "--llm",
    )
    assert refusal(parts, llm="vision", vision="llm") == f"error: {says[0]}; {says[1]}"
    assert refusal(parts, vision="llm") == f"error: {says[1]}"


def test_a_name_that_is_no_folder_gives_the_command_that_downloads_it(parts, monkeypatch):
    monkeypatch.chdir(parts)
    command = ["--llm", "Qwen/Qwen3-0.6B", "--vision", "vision", "-o", "out"]
    result = invoke("import", *command)
    assert result.exit_code == 1
    assert "hf download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B" in result.stderr
    assert not (parts / "out").exists()


def test_pickled_weights_are_refused_with_their_conversion(parts):
    for file in (parts / "llm").glob("model*"):
        file.unlink()
    (parts / "llm" / "pytorch_model.bin").touch()
    assert "from transformers import LlamaForCausalLM as M" in refusal(parts)


def test_a_tower_that_does_not_fit_the_connector_is_refused_with_both_widths(parts):
    shapes = connector_shapes(48, 80)
    path = parts / "connector.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    assert "it takes features of width 48, the vision tower gives 32" in (
        refusal(parts, "--connector", path)
    )


def test_an_adapter_for_another_base_is_refused(parts):
    adapter = parts / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {"lora_A": torch.ones(4, 96), "lora_B": torch.ones(96, 4)}
    tensors = {f"{module}.{name}.weight": factor for name, factor in factors.items()}
    save_file(tensors, adapter / "adapter_model.safetensors")
    assert "does not fit the base" in refusal(parts, "--adapter", adapter)


def test_routers_of_other_layers_are_refused(parts):
    path = parts / "routers.safetensors"
    save_file({"model.layers.0.router.weight": torch.ones(1, 80)}, path)
    line = refusal(parts, "--policy", "mod", "--routers", path)
    assert "it has those of layers 0, the MoD layers are 1" in line


def test_a_place_that_cannot_be_written_is_one_line(parts):
    (parts / "file").touch()
    result = invoke("import", *options(parts), "-o", parts / "file" / "out")
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr
