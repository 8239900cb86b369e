"""Random-weight checkpoints of named geometries: the published sizes, the same bytes every time."""

import math
import shutil
from functools import cache

import pytest
import torch
from safetensors.torch import load_file

from mod_edge.errors import ConfigError
from mod_edge.model.checkpoint import WEIGHTS_FILE, Checkpoint, tensor_shapes
from mod_edge.model.presets import (
    GEOMETRIES,
    init_checkpoint,
    preset_config,
    random_tensor,
    write_random_checkpoint,
)

pytestmark = pytest.mark.numeric


@cache
def shapes_of(name):
    return tensor_shapes(preset_config(name))


def num_parameters(name, *prefixes):
    return sum(
        math.prod(shape)
        for tensor, shape in shapes_of(name).items()
        if tensor.startswith(prefixes) and ".router." not in tensor
    )


def write(folder, seed):
    folder.mkdir()
    write_random_checkpoint(preset_config("tiny"), folder, seed)
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The tiny preset's checkpoint of seed 0; not to be changed."""
    return write(tmp_path_factory.mktemp("presets") / "tiny", seed=0)


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("135m", 134_515_008),  # HuggingFaceTB/SmolLM2-135M
        ("1b", 1_235_814_400),  # meta-llama/Llama-3.2-1B
        ("8b", 8_030_261_248),  # meta-llama/Meta-Llama-3-8B
    ],
)
def test_a_presets_decoder_has_the_published_number_of_parameters(name, decoder):
    assert num_parameters(name, "model.", "lm_head.") == decoder


@pytest.mark.parametrize(
    ("name", "tower"),
    [
        ("1b", 92_884_224),  # the vision half of google/siglip-base-patch16-224
        ("8b", 316_283_904),  # and of google/siglip-large-patch16-384
    ],
)
def test_a_presets_tower_has_the_published_number_of_parameters(name, tower):
    assert num_parameters(name, "vision_model.") == tower


def test_the_8b_presets_routers_and_connector_are_the_published_ones():
    shapes = shapes_of("8b")
    assert sum(math.prod(s) for name, s in shapes.items() if ".router." in name) == 65_552
    assert shapes["connector.0.weight"] == (4096, 1024)
    assert shapes["connector.2.weight"] == (4096, 4096)
    assert shapes["model.layers.31.router.weight"] == (1, 4096)


def test_tiny_has_fewer_than_two_million_parameters():
    assert num_parameters("tiny", "") < 2_000_000


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
    """Equal ones would be merged on export, and a swapped pair would not show."""
    tensors = load_file(written / WEIGHTS_FILE)
    contents = [tensor.numpy().tobytes() for tensor in tensors.values()]
    assert len(set(contents)) == len(contents)
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_tensors_values_do_not_depend_on_the_other_tensors():
    config, name = preset_config("tiny"), "model.layers.2.mlp.up_proj.weight"
    tensor = random_tensor(config, name, (256, 96), seed=5)
    assert torch.equal(tensor, random_tensor(config, name, (256, 96), seed=5))
    other = random_tensor(config, name.replace("2", "3"), (256, 96), seed=5)
    assert not torch.equal(tensor, other)


def test_every_byte_written_is_reported(tmp_path):
    config, sizes_bytes = preset_config("tiny"), []
    write_random_checkpoint(config, tmp_path, 0, on_bytes=sizes_bytes.append)
    shapes = tensor_shapes(config)
    assert sizes_bytes == [4 * math.prod(shape) for shape in shapes.values()]
    header_bytes = (tmp_path / WEIGHTS_FILE).stat().st_size - sum(sizes_bytes)
    assert 0 < header_bytes < 20_000
    assert header_bytes % 8 == 0  # the data starts aligned


def test_init_makes_the_presets_checkpoint_whole(written, tmp_path):
    done_bytes = []
    folder = tmp_path / "mine"
    size_bytes = init_checkpoint(
        "tiny", folder, on_progress=lambda _part, done, total: done_bytes.append((done, total))
    )
    assert done_bytes[-1] == (size_bytes, size_bytes)
    assert Checkpoint(folder).fingerprint() == Checkpoint(written).fingerprint()


def test_init_does_not_replace_a_folder_unasked(tmp_path):
    with pytest.raises(ConfigError, match="exists already; use --force"):
        init_checkpoint("tiny", tmp_path)


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


def test_a_checkpoint_moves_with_its_folder(written, tmp_path):
    moved = shutil.copytree(written, tmp_path / "elsewhere" / "another name")
    assert Checkpoint(moved).fingerprint() == Checkpoint(written).fingerprint()
