"""Folders of Hugging Face models: opened if they can be read, refused by name if not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mod_edge.errors import CheckpointError
from mod_edge.model.importing.source_folder import SourceFolder

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
QUERY = "model.layers.0.self_attn.q_proj.weight"


def write_folder(folder, tensors=None, **fields):
    """A folder with a config.json and the tensors in `tensors`, one of each float dtype if None."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | fields))
    if tensors is None:
        dtypes = (torch.float32, torch.bfloat16, torch.float16)
        tensors = {str(dtype): torch.ones(2, 3, dtype=dtype) for dtype in dtypes}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def message_of(folder):
    with pytest.raises(CheckpointError) as caught:
        SourceFolder(folder)
    message = str(caught.value)
    assert message.startswith(str(folder))
    return message


def test_a_folder_gives_its_config_its_tensors_and_its_other_documents(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    source = SourceFolder(folder)
    assert source.config["model_type"] == "llama"
    assert source.weights.read("torch.bfloat16").dtype == torch.bfloat16
    assert source.document("generation_config.json") == {"eos_token_id": 2}
    assert source.document("preprocessor_config.json") is None


@pytest.mark.parametrize("text", ["", "[]", "1"])
def test_a_document_that_is_not_a_json_object_is_named(tmp_path, text):
    folder = write_folder(tmp_path)
    (folder / "preprocessor_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json .* download"):
        SourceFolder(folder).document("preprocessor_config.json")


def test_a_name_on_the_hub_gives_the_command_that_downloads_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message_of(Path("Qwen/Qwen3-0.6B")).endswith(
        ": hf download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B"
    )


def test_a_path_that_is_no_folder_of_a_model_is_told_apart(tmp_path):
    assert "is not a Hugging Face model (no such folder)" in message_of(tmp_path / "none")
    assert "(no config.json); give a downloaded model's folder" in message_of(tmp_path)
    (tmp_path / "file").touch()
    assert "is a file; give the Hugging Face model's folder" in message_of(tmp_path / "file")
    (tmp_path / "model.gguf").touch()
    assert "GGUF files are not read" in message_of(tmp_path)
    (tmp_path / "adapter_config.json").touch()
    assert "give an adapter with --adapter" in message_of(tmp_path)


def test_a_checkpoint_and_a_bundle_of_ours_are_not_imported_again(tmp_path):
    assert "is a mod-edge checkpoint already" in message_of(
        write_folder(tmp_path, model_type="videollm_mod")
    )
    (tmp_path / "manifest.json").touch()
    assert "is a mod-edge bundle" in message_of(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_config_is_named(tmp_path, text):
    write_folder(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json (is not valid|contains a list)"):
        SourceFolder(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_with_the_command_that_converts_them(tmp_path, name):
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).touch()
    message = message_of(tmp_path)
    assert f"weights in {name}, which is pickled" in message
    assert "from transformers import LlamaForCausalLM as M" in message
    assert f"M.from_pretrained('{tmp_path}', dtype='auto').save_pretrained(" in message


def test_pickled_weights_beside_safetensors_do_not_matter(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    SourceFolder(tmp_path)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors"])
def test_a_quantized_model_is_refused_by_its_method(tmp_path, method):
    write_folder(tmp_path, quantization_config={"quant_method": method})
    assert f"quantization_config with quant_method='{method}'" in message_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "dtype", "shown"),
    [
        ("model.layers.0.mlp.up_proj.qweight", torch.int32, "I32"),
        ("model.layers.0.mlp.up_proj.scales", torch.float16, "F16"),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", torch.float32, "F32"),
        ("model.layers.0.mlp.up_proj.weight", torch.float8_e4m3fn, "F8_E4M3"),
    ],
)
def test_packed_tensors_are_refused_by_name_without_a_word_in_the_config(
    tmp_path, name, dtype, shown
):
    tensors = {QUERY: torch.ones(2, 2), name: torch.ones(2, 2).to(dtype)}
    message = message_of(write_folder(tmp_path, tensors))
    assert "packed by quantization" in message
    assert f"'{name}' is {shown} [2, 2] in model.safetensors" in message
    assert QUERY not in message


def test_all_tensors_of_other_dtypes_are_named_at_once(tmp_path):
    tensors = {"a": torch.ones(2, dtype=torch.float64), "b": torch.ones(3, dtype=torch.int8)}
    message = message_of(write_folder(tmp_path, {**tensors, QUERY: torch.ones(2)}))
    assert "'a' is F64 [2]" in message
    assert "'b' is I8 [3]" in message


def write_shards(folder, *shards):
    """The folder of `write_folder` with `shards`, (file, tensors), and an index of all of them."""
    write_folder(folder)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, tensors in shards for name in tensors}
    for file, tensors in shards:
        save_file(tensors, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def two_shards(folder):
    one, two = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    shards = (one, {"a": torch.ones(50)}), (two, {"b": torch.ones(50)})
    return write_shards(folder, *shards), one, two


def test_an_index_that_names_a_missing_shard_is_refused(tmp_path):
    folder, one, _ = two_shards(tmp_path)
    (folder / one).unlink()
    assert f"{one} is missing; copy or download" in message_of(folder)


def test_a_shard_that_is_cut_off_is_refused(tmp_path):
    folder, _, two = two_shards(tmp_path)
    (folder / two).write_bytes((folder / two).read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=f"{two} is damaged or cut off"):
        SourceFolder(folder)


def test_one_tensor_in_two_files_is_refused(tmp_path):
    folder, one, two = two_shards(tmp_path)
    save_file({"a": torch.zeros(50), "b": torch.ones(50)}, folder / two)
    with pytest.raises(CheckpointError, match=f"'a' in {one} and {two}"):
        SourceFolder(folder)


def test_a_pointer_of_git_lfs_is_refused(tmp_path):
    folder, one, _ = two_shards(tmp_path)
    (folder / one).write_text("version https://git-lfs.github.com/spec/v1\noid sha\n")
    assert f"{one} is a git-lfs pointer" in message_of(folder)
