"""The checkpoint writer: files that the safetensors library reads, in shards of limited size."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mod_edge.model import checkpoint_writer
from mod_edge.model.checkpoint import CHECKPOINT, Checkpoint
from mod_edge.model.checkpoint_writer import write_checkpoint
from mod_edge.model.presets import preset_config
from mod_edge.model.weight_files import INDEX_FILE, WEIGHTS_FILE
from mod_edge.plan.tokenizer import preset_tokenizer
from tests.file_size_limit import file_size_limit

CONFIG = preset_config("tiny")
TOKENIZER = preset_tokenizer(CONFIG.text_config.vocab_size)


@pytest.fixture(scope="module")
def tensors(tiny_checkpoint):
    """Tensors of the tiny checkpoint, by name."""
    return dict(Checkpoint(tiny_checkpoint).tensors(""))


def test_a_checkpoint_is_written_as_it_was_read(tensors, tiny_checkpoint, tmp_path):
    write_checkpoint(tmp_path, CONFIG, TOKENIZER, tensors.__getitem__)
    assert {path.name for path in tmp_path.iterdir()} == {
        path.name for path in tiny_checkpoint.iterdir()
    }
    assert Checkpoint(tmp_path).fingerprint() == Checkpoint(tiny_checkpoint).fingerprint()


def test_the_library_reads_shards_and_their_index(tensors, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "SHARD_BYTES", 300_000)
    write_checkpoint(tmp_path, CONFIG, TOKENIZER, tensors.__getitem__)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    assert not (tmp_path / WEIGHTS_FILE).exists()
    found = {}
    for path in tmp_path.glob("*.safetensors"):
        shard = load_file(path)
        assert {index["weight_map"][name] for name in shard} == {path.name}
        found |= shard
    assert CHECKPOINT.foreign_files(tmp_path) == []
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in found)
    size_bytes = sum(tensor.nbytes for tensor in found.values())
    assert index["metadata"]["total_size"] == size_bytes


@pytest.mark.parametrize("limit_bytes", [4_000, 100_000])  # in the tokenizer, in the weights
def test_a_full_disk_is_an_error_of_the_system(tensors, tmp_path, limit_bytes):
    with pytest.raises(OSError, match="File too large"), file_size_limit(limit_bytes):
        write_checkpoint(tmp_path, CONFIG, TOKENIZER, tensors.__getitem__)


def test_a_tensor_of_another_shape_fails_an_assertion(tensors, tmp_path):
    with pytest.raises(AssertionError, match=r"vision_model\..* is \[3\], wanted "):
        write_checkpoint(tmp_path, CONFIG, TOKENIZER, lambda _name: torch.ones(3))


def test_only_a_single_large_tensor_makes_a_file_larger_than_a_shard(monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "SHARD_BYTES", 100)
    sizes = {"a": 100, "b": 24, "c": 80, "d": 120, "e": 16, "f": 84}
    assert checkpoint_writer._shards(sizes) == [["a"], ["b"], ["c"], ["d"], ["e", "f"]]


def test_tensors_keep_dtypes_of_their_own_and_the_library_reads_them(tensors, tmp_path):
    half = replace(CONFIG, dtype="bfloat16")
    dtypes = {
        name: torch.float32 if name.startswith("vision_model.") else torch.float16
        for name in tensors
        if name.startswith(("vision_model.", "model.norm."))
    }
    # An odd number of 2-byte weights before the others would leave them unaligned.
    dtypes["connector.0.bias"] = torch.float32
    write_checkpoint(tmp_path, half, TOKENIZER, tensors.__getitem__, dtypes=dtypes)
    checkpoint = Checkpoint(tmp_path)
    for name, found in load_file(tmp_path / WEIGHTS_FILE).items():
        assert found.dtype == dtypes.get(name, torch.bfloat16), name
        assert torch.equal(found, tensors[name].to(found.dtype)), name
        assert torch.equal(checkpoint.tensor(name), found)
    assert checkpoint.load_model().connector[0].bias.dtype == torch.float32
