"""Weight files of any checkpoint: found, told apart, checked and read a block at a time."""

import errno
import json
import math
import os

import pytest
import torch
from safetensors.torch import save_file

from mod_edge.config import EMBEDDING_WEIGHT, HEAD_WEIGHT
from mod_edge.errors import CheckpointError
from mod_edge.model import weight_files
from mod_edge.model.weight_files import (
    BUFFERS,
    INDEX_FILE,
    WEIGHTS_FILE,
    WeightFiles,
    tied_head_fault,
)

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:7ef915c9bf9d7ef915c9bf9d7ef915c9bf9d7ef915c9bf9d7ef915c9bf9d7ef9\nsize 269060552\n"
)


def some_tensors():
    """Three tensors of odd shapes."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (7, 3), "b.weight": (5,), "c.weight": (2, 3, 4)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_single(folder, tensors):
    save_file(tensors, folder / WEIGHTS_FILE)


def write_sharded(folder, tensors):
    first, *others = tensors
    save_file({first: tensors[first]}, folder / SHARDS[0])
    save_file({name: tensors[name] for name in others}, folder / SHARDS[1])
    write_index(folder, {first: SHARDS[0]} | dict.fromkeys(others, SHARDS[1]))


def write_index(folder, weight_map):
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def message_of(folder):
    with pytest.raises(CheckpointError) as caught:
        WeightFiles(folder)
    return str(caught.value)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 8 bytes, so that a tensor has several and the last one is shorter."""
    monkeypatch.setattr(weight_files, "BLOCK_BYTES", 8)


@pytest.mark.parametrize("write", [write_single, write_sharded])
def test_every_tensor_is_read_as_it_was_written(tmp_path, write):
    tensors = some_tensors()
    write(tmp_path, tensors)
    files = WeightFiles(tmp_path)
    assert files.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(files.read(name), tensor)
        assert files.tensors[name].shape == tuple(tensor.shape)


# ---- one file, or several with an index ----


def test_an_index_of_the_single_file_is_fine(tmp_path):
    write_single(tmp_path, some_tensors())
    write_index(tmp_path, dict.fromkeys(some_tensors(), WEIGHTS_FILE))
    assert [file.name for file in WeightFiles(tmp_path).files] == [WEIGHTS_FILE]


def test_a_single_file_beside_an_index_of_missing_files_is_refused_with_both_names(tmp_path):
    write_single(tmp_path, some_tensors())
    write_index(tmp_path, {"a.weight": SHARDS[0], "b.weight": SHARDS[1]})
    assert message_of(tmp_path) == (
        f"{tmp_path} has both {WEIGHTS_FILE} and {INDEX_FILE}, which lists other weights: no "
        f"{SHARDS[0]}; {SHARDS[1]}; delete {INDEX_FILE} to use {WEIGHTS_FILE}, or delete "
        f"{WEIGHTS_FILE} to use the listed files"
    )


@pytest.mark.usefixtures("small_blocks")
def test_a_single_file_beside_shards_of_the_same_weights_is_fine(tmp_path):
    write_single(tmp_path, some_tensors())
    write_sharded(tmp_path, some_tensors())
    assert WeightFiles(tmp_path).tensors.keys() == some_tensors().keys()


def change_the_last_number(tensors):
    tensors["c.weight"][-1, -1, -1] += 1


def make_half(tensors):
    tensors["b.weight"] = tensors["b.weight"].half()


def reshape(tensors):
    tensors["a.weight"] = tensors["a.weight"].T.contiguous()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (change_the_last_number, r"'c\.weight' .* is not the same as"),
        (
            make_half,
            r"'b\.weight' \(F32 \[5\] in model\.safetensors\) is not .* F16 \[5\] in model-",
        ),
        (reshape, r"'a\.weight' .* \[3, 7\] in model-00001"),
        (lambda tensors: tensors.pop("c.weight"), r"only model\.safetensors has 'c\.weight'"),
        (
            lambda tensors: tensors.update(d=torch.ones(1)),
            r"only model-00002-of-00002\.safetensors has 'd'",
        ),
    ],
)
def test_a_single_file_beside_shards_of_other_weights_is_refused(tmp_path, change, difference):
    write_single(tmp_path, some_tensors())
    changed = some_tensors()
    change(changed)
    write_sharded(tmp_path, changed)
    with pytest.raises(
        CheckpointError, match=rf"both {WEIGHTS_FILE} and {INDEX_FILE}.*{difference}"
    ):
        WeightFiles(tmp_path)


def test_shards_without_an_index_name_the_index(tmp_path):
    write_sharded(tmp_path, some_tensors())
    (tmp_path / INDEX_FILE).unlink()
    assert f"has {SHARDS[0]}, but no {INDEX_FILE}" in message_of(tmp_path)


def test_a_tensor_in_two_files_is_refused_with_both_names(tmp_path):
    write_sharded(tmp_path, some_tensors())
    save_file(some_tensors(), tmp_path / SHARDS[1])
    assert f"'a.weight' in {SHARDS[0]} and {SHARDS[1]}" in message_of(tmp_path)


# ---- files that are not what they seem ----


def test_a_git_lfs_pointer_is_named_with_the_command_that_fetches_the_file(tmp_path):
    write_sharded(tmp_path, some_tensors())
    (tmp_path / SHARDS[1]).write_text(POINTER)
    says = (
        f"{SHARDS[1]} is a git-lfs pointer, not the file itself; fetch the files with: git lfs pull"
    )
    assert message_of(tmp_path) == f"{tmp_path}: {says}"
    (tmp_path / INDEX_FILE).write_text(POINTER)
    assert f"{INDEX_FILE} is a git-lfs pointer" in message_of(tmp_path)


def test_all_missing_and_unfetched_files_are_named_at_once(tmp_path):
    write_sharded(tmp_path, some_tensors())
    (tmp_path / SHARDS[0]).unlink()
    (tmp_path / SHARDS[1]).write_text(POINTER)
    message = message_of(tmp_path)
    assert f"{SHARDS[0]} is missing; {SHARDS[1]} is a git-lfs pointer" in message
    assert "copy or download the checkpoint again, or fetch the files with: git lfs pull" in message


def test_a_link_to_a_missing_file_is_named_with_its_target(tmp_path):
    (tmp_path / WEIGHTS_FILE).symlink_to("../../blobs/7ef915")
    says = f"{WEIGHTS_FILE} is a link to ../../blobs/7ef915, which does not exist"
    assert says in message_of(tmp_path)


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    (tmp_path / WEIGHTS_FILE).mkdir()
    assert f"{WEIGHTS_FILE} is not a file" in message_of(tmp_path)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_an_unreadable_file_is_named_with_the_systems_reason(tmp_path, monkeypatch, code):
    write_single(tmp_path, some_tensors())
    files = WeightFiles(tmp_path)

    def fail(*_arguments, **_options):
        raise OSError(code, os.strerror(code))

    says = rf"{WEIGHTS_FILE} cannot be read.*{os.strerror(code)}.*check.* permissions and the disk"
    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "open", fail)
        for read in (lambda: WeightFiles(tmp_path), lambda: files.require_finite(files.tensors)):
            with pytest.raises(CheckpointError, match=says):
                read()
    monkeypatch.setattr(weight_files, "safe_open", fail)
    for read in (lambda: WeightFiles(tmp_path), lambda: files.read("a.weight")):
        with pytest.raises(CheckpointError, match=says):
            read()


def test_a_file_that_becomes_shorter_after_it_was_opened_is_an_error(tmp_path):
    write_single(tmp_path, some_tensors())
    files = WeightFiles(tmp_path)
    os.truncate(tmp_path / WEIGHTS_FILE, (tmp_path / WEIGHTS_FILE).stat().st_size - 1)
    with pytest.raises(CheckpointError, match="cannot be read: it has become shorter"):
        files.require_finite(files.tensors)


# ---- what is in them ----


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_tensor_with_nan_or_infinite_weights_is_named_and_counted(tmp_path, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in some_tensors().items()}
    # The largest finite numbers, a zero and a subnormal number must pass.
    limits = [torch.finfo(dtype).max, torch.finfo(dtype).min, 0.0, torch.finfo(dtype).tiny / 2]
    tensors["b.weight"][:4] = torch.tensor(limits, dtype=dtype)
    write_single(tmp_path, tensors)
    WeightFiles(tmp_path).require_finite(tensors)
    tensors["a.weight"][6, 1:] = math.nan
    tensors["a.weight"][0, 0] = -math.inf
    tensors["b.weight"][4] = math.inf
    write_single(tmp_path, tensors)
    with pytest.raises(CheckpointError) as caught:
        WeightFiles(tmp_path).require_finite(tensors)
    message = str(caught.value)
    assert "'a.weight' (2 NaN, 1 infinite of 21); 'b.weight' (0 NaN, 1 infinite of 5); " in message
    assert "c.weight" not in message


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "vision_model.embeddings.position_ids",
        *BUFFERS,
    ],
)
def test_buffers_that_every_model_computes_are_omitted(tmp_path, name):
    write_single(tmp_path, some_tensors() | {name: torch.arange(4)})
    files = WeightFiles(tmp_path)
    assert files.tensors.keys() == some_tensors().keys()
    files.require_finite(files.tensors)


@pytest.mark.parametrize(
    "name", ["model.inv_freq", "my_rotary_emb.inv_freq", "embeddings.position_ids.weight"]
)
def test_tensors_of_similar_names_are_not_omitted(tmp_path, name):
    write_single(tmp_path, some_tensors() | {name: torch.arange(4)})
    assert name in WeightFiles(tmp_path).tensors


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("head", "is_fault"),
    [
        (lambda table: table.clone(), False),
        (lambda table: table.flip(0), True),
        (lambda table: table[:-1].clone(), True),
        (lambda table: table.to(torch.bfloat16), True),
    ],
)
def test_a_tied_head_is_absent_or_the_embedding(tmp_path, head, is_fault):
    table = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    write_single(tmp_path, {EMBEDDING_WEIGHT: table})
    assert tied_head_fault(WeightFiles(tmp_path).tensors) is None
    write_single(tmp_path, {EMBEDDING_WEIGHT: table, HEAD_WEIGHT: head(table)})
    fault = tied_head_fault(WeightFiles(tmp_path).tensors)
    assert (fault is not None) == is_fault
    if fault is not None:
        assert f"'{HEAD_WEIGHT}' (" in fault
        assert f"'{EMBEDDING_WEIGHT}' (F32 [5, 3] in {WEIGHTS_FILE})" in fault
        assert "set it to false to use this head, or remove the tensor" in fault
