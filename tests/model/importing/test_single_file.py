"""A weight file that a user names: read as it is, or refused with what to do."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from mod_edge.errors import CheckpointError
from mod_edge.model.importing.single_file import open_weight_file


def test_the_tensors_of_a_file_are_read_whatever_its_name_is(tmp_path):
    path = tmp_path / "my connector.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5, dtype=torch.bfloat16)}
    save_file(tensors, path)
    weights = open_weight_file(path)
    assert weights.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(weights.read(name), tensor)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth"])
def test_a_pickled_file_is_refused_with_the_command_that_converts_it(tmp_path, suffix, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"weights{suffix}"
    torch.save({"a": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match="pickled and not read") as caught:
        open_weight_file(path)
    command = str(caught.value).partition('python -c "')[2].removesuffix('"')
    exec(command, {})
    assert torch.equal(load_file(tmp_path / "weights.safetensors")["a"], torch.ones(3))


def test_tensors_of_other_dtypes_are_refused_by_name(tmp_path):
    path = tmp_path / "q.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(2, dtype=torch.int8)}, path)
    with pytest.raises(CheckpointError, match=r"'b' is I8 \[2\] in q\.safetensors; wanted F32, BF"):
        open_weight_file(path)


def test_a_missing_file_a_folder_and_a_damaged_file_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors does not exist; check the path"):
        open_weight_file(tmp_path / "none.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        CheckpointError, match="folder is a folder; give the safetensors file in it"
    ):
        open_weight_file(tmp_path / "folder")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"link\.safetensors is a link to .*gone, which does"):
        open_weight_file(tmp_path / "link.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_weight_file(tmp_path / ("n" * 300))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is damaged or cut off"):
        open_weight_file(tmp_path / "cut.safetensors")
