"""Random-weight checkpoints of named geometries: the published sizes, the same bytes every time."""

import math
from functools import cache

import pytest
import torch
from safetensors.torch import load_file

from mod_edge.errors import ConfigError
from mod_edge.model.checkpoint import CHECKPOINT, Checkpoint, tensor_shapes
from mod_edge.model.presets import (
    GEOMETRIES,
    init_checkpoint,
    preset_config,
    write_random_checkpoint,
)
from mod_edge.model.weight_files import WEIGHTS_FILE

pytestmark = pytest.mark.numeric


@cache
def shapes_of(name):
    return tensor_shapes(preset_config(name))


def write(folder, seed):
    folder.mkdir()
    write_random_checkpoint(preset_config("tiny"), folder, seed)
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The tiny preset's checkpoint of seed 0; not to be changed."""
    return write(tmp_path_factory.mktemp("presets") / "tiny", seed=0)


@pytest.mark.parametrize(
    ("name", "part", "num_parameters"),
    [
        ("135m", "decoder", 134_515_008),  # HuggingFaceTB/SmolLM2-135M
        ("1b", "decoder", 1_235_814_400),  # meta-llama/Llama-3.2-1B
        ("8b", "decoder", 8_030_261_248),  # meta-llama/Meta-Llama-3-8B
        ("1b", "vision_model", 92_884_224),  # the tower of google/siglip-base-patch16-224
        ("8b", "vision_model", 316_283_904),  # and of google/siglip-large-patch16-384
        ("8b", "connector", 4096 * 1024 + 4096 * 4096 + 2 * 4096),  # the paper's
        ("8b", "router", 65_552),  # 16 routers of 4096 weights and a bias
    ],
)
def test_a_preset_has_the_published_number_of_parameters(name, part, num_parameters):
    def part_of(tensor):
        if ".router." in tensor:
            return "router"
        first = tensor.partition(".")[0]
        return "decoder" if first in ("model", "lm_head") else first

    shapes = shapes_of(name).items()
    assert sum(math.prod(shape) for each, shape in shapes if part_of(each) == part) == (
        num_parameters
    )


@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_preset_is_the_papers_policy_with_ten_tokens_a_frame(name):
    config = preset_config(name)
    assert config.mod_layers == tuple(range(1, config.text_config.num_hidden_layers, 2))
    assert (config.frame_num_tokens, config.num_kept) == (10, 2)


def test_the_same_seed_writes_the_same_bytes(written, tmp_path):
    again = write(tmp_path / "again", seed=0)
    for path in written.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    assert Checkpoint(again).fingerprint() == Checkpoint(written).fingerprint()


def test_another_seed_changes_every_tensor_and_the_fingerprint(written, tmp_path):
    other = write(tmp_path / "other", seed=1)
    assert Checkpoint(other).fingerprint() != Checkpoint(written).fingerprint()
    ours, theirs = (load_file(folder / WEIGHTS_FILE) for folder in (written, other))
    assert [name for name in ours if torch.equal(ours[name], theirs[name])] == []


def test_no_two_tensors_of_a_checkpoint_are_equal(written):
    """Equal tensors would be merged on export, and a swapped pair would not show."""
    tensors = load_file(written / WEIGHTS_FILE)
    contents = [tensor.numpy().tobytes() for tensor in tensors.values()]
    assert len(set(contents)) == len(contents)
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_every_byte_written_is_reported(tmp_path):
    config, sizes_bytes = preset_config("tiny"), []
    write_random_checkpoint(config, tmp_path, 0, on_bytes=sizes_bytes.append)
    shapes = tensor_shapes(config)
    assert sizes_bytes == [4 * math.prod(shape) for shape in shapes.values()]
    header_bytes = (tmp_path / WEIGHTS_FILE).stat().st_size - sum(sizes_bytes)
    assert 0 < header_bytes < 20_000
    assert header_bytes % 8 == 0  # the data starts aligned


def test_init_writes_the_presets_checkpoint_and_reports_progress(written, tmp_path):
    done_bytes = []
    folder = tmp_path / "mine"
    size_bytes = init_checkpoint(
        "tiny", folder, on_progress=lambda _part, done, total: done_bytes.append((done, total))
    )
    assert done_bytes[-1] == (size_bytes, size_bytes)
    assert Checkpoint(folder).fingerprint() == Checkpoint(written).fingerprint()


def test_init_replaces_a_folder_only_by_force(tmp_path):
    with pytest.raises(ConfigError, match="exists already; use --force"):
        init_checkpoint("tiny", tmp_path)


def test_init_never_deletes_files_of_the_user(tmp_path):
    init_checkpoint("tiny", tmp_path, force=True)
    assert CHECKPOINT.foreign_files(tmp_path) == []
    (tmp_path / "README.md").write_text("where it is from")
    with pytest.raises(ConfigError, match=r"delete: README\.md; move them away"):
        init_checkpoint("tiny", tmp_path, force=True)


def test_an_interrupted_init_leaves_nothing(tmp_path):
    def interrupt(*_progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        init_checkpoint("tiny", tmp_path / "mine", on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_preset_lists_the_known_ones_with_the_nearest_hint(tmp_path):
    with pytest.raises(
        ConfigError, match=r"one of narrator, tiny, 135m, 1b, 8b \(did you mean 'tiny'\?\)"
    ):
        init_checkpoint("tinny", tmp_path / "mine")
