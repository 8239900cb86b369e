"""Checkpoint folders: opened if valid, refused with every fault named if not."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mod_edge.bundle.manifest import CONFIG_FILE, TOKENIZER_FILE
from mod_edge.config import EMBEDDING_WEIGHT, HEAD_WEIGHT, read_config, write_config
from mod_edge.errors import CheckpointError, ConfigError
from mod_edge.model import checkpoint_writer, presets
from mod_edge.model.checkpoint import Checkpoint, tensor_shapes
from mod_edge.model.weight_files import INDEX_FILE, WEIGHTS_FILE
from tests.frame_layouts import without_cls

QUERY = "model.layers.0.self_attn.q_proj.weight"
ROUTER = "model.layers.3.router.weight"


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint that a test may break."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")


def change_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


def change_config(folder, section, **fields):
    path = folder / CONFIG_FILE
    document = json.loads(path.read_text())
    document[section].update(fields)
    path.write_text(json.dumps(document))


def write(config, folder, seed=0):
    folder.mkdir()
    presets.write_random_checkpoint(config, folder, seed)
    return folder


def small_config(**text):
    """The tiny preset with two layers: its tokenizer's protocol ids need its vocabulary."""
    config = presets.preset_config("tiny")
    return replace(config, text_config=replace(config.text_config, num_hidden_layers=2, **text))


def test_the_model_holds_exactly_the_files_tensors(tiny_checkpoint):
    tensors = load_file(tiny_checkpoint / WEIGHTS_FILE)
    model = Checkpoint(tiny_checkpoint).load_model()
    parameters = dict(model.named_parameters())
    assert parameters.keys() == tensors.keys()
    for name, parameter in parameters.items():
        assert torch.equal(parameter, tensors[name]), name
        assert not parameter.requires_grad


def test_tensors_are_selected_by_prefix_in_the_models_order(tiny_checkpoint):
    checkpoint = Checkpoint(tiny_checkpoint)
    names = [name for name, _ in checkpoint.tensors("model.layers.1.", "model.norm.")]
    assert names == [
        name
        for name in tensor_shapes(checkpoint.config)
        if name.startswith(("model.layers.1.", "model.norm."))
    ]
    assert names[-1] == "model.norm.weight"
    assert "model.layers.1.router.bias" in names


def test_a_pooling_head_that_a_model_without_cls_does_not_use_is_not_read(checkpoint):
    path = checkpoint / CONFIG_FILE
    write_config(without_cls(read_config(path)), path)  # SigLIP's files have the head all the same
    model = Checkpoint(checkpoint).load_model()
    assert model.vision_model.head is None
    change_tensors(checkpoint, lambda tensors: tensors.pop("vision_model.head.probe"))
    Checkpoint(checkpoint)


@pytest.mark.parametrize(
    "probe", [torch.full((1, 1, 64), torch.nan), torch.zeros(1, 1, 64, dtype=torch.float64)]
)
def test_the_numbers_and_dtype_of_a_pooling_head_that_is_not_used_do_not_matter(checkpoint, probe):
    path = checkpoint / CONFIG_FILE
    write_config(without_cls(read_config(path)), path)
    change_tensors(checkpoint, lambda tensors: tensors.update({"vision_model.head.probe": probe}))
    Checkpoint(checkpoint).require_finite()


def test_a_model_with_cls_needs_its_pooling_head(checkpoint):
    change_tensors(checkpoint, lambda tensors: tensors.pop("vision_model.head.probe"))
    with pytest.raises(CheckpointError, match=r"no tensor 'vision_model\.head\.probe'"):
        Checkpoint(checkpoint)


def test_half_precision_files_load_as_float32(tmp_path):
    folder = write(replace(small_config(), dtype="bfloat16"), tmp_path / "half")
    checkpoint = Checkpoint(folder)
    assert checkpoint.tensor(QUERY).dtype == torch.bfloat16
    weight = checkpoint.load_model().get_parameter(QUERY)
    assert weight.dtype == torch.float32
    assert torch.equal(weight, checkpoint.tensor(QUERY).float())


def test_all_faulty_tensors_are_named_in_one_error(checkpoint):
    def break_three(tensors):
        del tensors[ROUTER]
        tensors[QUERY] = tensors[QUERY][:-1].contiguous()
        tensors["model.layers.0.router.weight"] = torch.zeros(1, 96)

    change_tensors(checkpoint, break_three)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(checkpoint)
    message = str(caught.value)
    assert f"no tensor '{ROUTER}'" in message
    assert f"'{QUERY}' is F32 [95, 96] in model.safetensors, config.json wants [96, 96]" in message
    assert "unknown tensor 'model.layers.0.router.weight'" in message
    assert "; and " not in message


def test_a_long_list_of_faults_is_cut_and_counted(checkpoint):
    change_tensors(checkpoint, lambda tensors: [tensors.pop(name) for name in list(tensors)[:30]])
    with pytest.raises(CheckpointError, match=r"no tensor .*; and 18 more; fix config\.json"):
        Checkpoint(checkpoint)


def test_a_config_of_another_geometry_shows_in_the_shapes(checkpoint):
    change_config(checkpoint, "text_config", num_key_value_heads=3)
    fault = r"k_proj\.weight' is F32 \[32, 96\].* wants \[48, 96\]"
    with pytest.raises(CheckpointError, match=fault):
        Checkpoint(checkpoint)


def first_bytes(count):
    return lambda data: data[:count]


@pytest.mark.parametrize(
    "change",
    [*map(first_bytes, [0, 5, 2000, 3_000_000]), lambda _: b"PK\3\4 another format"],
    ids=["0", "5", "2000", "3000000", "another format"],
)
def test_a_damaged_weight_file_is_a_checkpoint_error(checkpoint, change):
    path = checkpoint / WEIGHTS_FILE
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or cut off"):
        Checkpoint(checkpoint)


def test_a_folder_that_is_not_a_checkpoint_gives_the_command_that_creates_one(tmp_path):
    for folder, reason in ((tmp_path, r"no config\.json"), (tmp_path / "none", "no such folder")):
        says = rf"is not a checkpoint \({reason}\).*init tiny"
        with pytest.raises(CheckpointError, match=says):
            Checkpoint(folder)


def test_a_tokenizer_that_git_lfs_did_not_fetch_is_named_as_that(checkpoint):
    (checkpoint / TOKENIZER_FILE).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha\n"
    )
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json is a git-lfs pointer.*git lfs pull"
    ):
        Checkpoint(checkpoint)


def test_a_checkpoint_in_the_hubs_cache_is_the_same_checkpoint(tiny_checkpoint, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0a1b2c"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for file in tiny_checkpoint.iterdir():
        shutil.copyfile(file, blobs / f"{file.stem}-sha256")
        (snapshot / file.name).symlink_to(f"../../blobs/{file.stem}-sha256")
    ours, theirs = Checkpoint(snapshot), Checkpoint(tiny_checkpoint)
    assert ours.fingerprint() == theirs.fingerprint()
    assert torch.equal(ours.tensor(QUERY), theirs.tensor(QUERY))


def test_a_model_with_nan_weights_does_not_load(checkpoint):
    def poison(tensors):
        tensors[QUERY][0, 0] = math.nan

    change_tensors(checkpoint, poison)
    with pytest.raises(CheckpointError, match=rf"'{QUERY}' \(1 NaN, 0 infinite of 9216\)"):
        Checkpoint(checkpoint).load_model()


def test_buffers_of_other_tools_are_no_unknown_tensors(checkpoint):
    def add_buffers(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        tensors["vision_model.embeddings.position_ids"] = torch.arange(16)[None]

    change_tensors(checkpoint, add_buffers)
    assert Checkpoint(checkpoint).load_model().config == read_config(checkpoint / CONFIG_FILE)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (WEIGHTS_FILE, r"model\.safetensors is missing; copy or download"),
        (TOKENIZER_FILE, r"tokenizer\.json is missing; copy or download"),
    ],
)
def test_a_missing_file_is_named(checkpoint, name, fault):
    (checkpoint / name).unlink()
    with pytest.raises(CheckpointError, match=fault):
        Checkpoint(checkpoint)


def test_an_invalid_config_is_a_config_error(checkpoint):
    change_config(checkpoint, "mod_config", keep_ratio=0)
    with pytest.raises(ConfigError, match=r"config\.json: mod_config\.keep_ratio=0"):
        Checkpoint(checkpoint)


def test_a_tokenizer_that_does_not_fit_the_config_is_refused(checkpoint):
    change_config(checkpoint, "stream_config", stream_end_id=33)
    with pytest.raises(CheckpointError, match=r"stream_end .* is tokens .* wants \[33\]"):
        Checkpoint(checkpoint)


# ---- several weight files ----


@pytest.fixture
def sharded(monkeypatch, tmp_path):
    """A checkpoint in several files, and the same checkpoint in one."""
    one = write(small_config(), tmp_path / "one")
    monkeypatch.setattr(checkpoint_writer, "SHARD_BYTES", 300_000)
    return write(small_config(), tmp_path / "many"), one


def test_a_checkpoint_in_several_files_is_the_same_checkpoint(sharded):
    many, one = (Checkpoint(folder) for folder in sharded)
    files = sorted(path.name for path in many.path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    for path in many.path.glob("*.safetensors"):
        assert path.stat().st_size < 310_000  # a shard and its header
    ours, theirs = many.load_model().state_dict(), one.load_model().state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_missing_shard_is_named(sharded):
    many, _ = sharded
    shard = sorted(many.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"{shard.name} is missing; copy or download"):
        Checkpoint(many)


@pytest.mark.parametrize("name", ["../one/model.safetensors", "{folder}/model.safetensors"])
def test_an_index_that_names_a_file_outside_the_folder_is_refused(sharded, name):
    many, one = sharded
    name = name.format(folder=one)
    weight_map = dict.fromkeys(tensor_shapes(small_config()), name)
    (many / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="outside the checkpoint's folder; do not trust"):
        Checkpoint(many)


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": 1}}'),
        '{"weight_map": {"a": []}}',
        pytest.param("[" * 100_000, id="brackets"),
    ],
)
def test_a_damaged_index_is_a_checkpoint_error(sharded, content):
    many, _ = sharded
    (many / INDEX_FILE).write_text(content)
    with pytest.raises(CheckpointError, match="is not a safetensors index"):
        Checkpoint(many)


# ---- identity ----


def test_the_fingerprint_depends_on_the_contents_alone(tiny_checkpoint, checkpoint):
    same = Checkpoint(checkpoint).fingerprint()
    assert same == Checkpoint(tiny_checkpoint).fingerprint()
    config = read_config(checkpoint / CONFIG_FILE)
    change_config(checkpoint, "stream_config", frame_fps=1.0)
    assert Checkpoint(checkpoint).fingerprint() != same
    write_config(config, checkpoint / CONFIG_FILE)
    assert Checkpoint(checkpoint).fingerprint() == same

    def change_one_weight(tensors):
        tensors[QUERY][0, 0] += 1e-3

    change_tensors(checkpoint, change_one_weight)
    assert Checkpoint(checkpoint).fingerprint() != same


def test_a_tied_checkpoint_has_no_lm_head_tensor(tmp_path):
    folder = write(small_config(tie_word_embeddings=True), tmp_path / "tied")
    tensors = load_file(folder / WEIGHTS_FILE)
    assert "lm_head.weight" not in tensors
    model = Checkpoint(folder).load_model()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, tensors["model.embed_tokens.weight"])


def test_a_tied_checkpoint_may_hold_a_copy_of_the_embedding_but_not_another_head(tmp_path):
    folder = write(small_config(tie_word_embeddings=True), tmp_path / "tied")

    def add_head(tensors):
        tensors[HEAD_WEIGHT] = tensors[EMBEDDING_WEIGHT].clone()

    def change_head(tensors):
        tensors[HEAD_WEIGHT][-1, -1] += 1

    change_tensors(folder, add_head)
    model = Checkpoint(folder).load_model()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    change_tensors(folder, change_head)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(folder)
    assert f"'{HEAD_WEIGHT}' (F32 [512, 96] in {WEIGHTS_FILE}) is not the same as" in (
        str(caught.value)
    )
    change_config(folder, "text_config", tie_word_embeddings=False)
    assert not torch.equal(Checkpoint(folder).tensor(HEAD_WEIGHT), model.lm_head.weight)


@pytest.mark.parametrize("is_tied", [False, True])
def test_the_head_is_found_under_its_own_name_tied_or_not(tmp_path, is_tied):
    checkpoint = Checkpoint(write(small_config(tie_word_embeddings=is_tied), tmp_path / "any"))
    [(name, head)] = checkpoint.tensors("lm_head.")
    assert name == HEAD_WEIGHT
    assert torch.equal(head, checkpoint.load_model().lm_head.weight)
    assert torch.equal(head, checkpoint.tensor(EMBEDDING_WEIGHT)) == is_tied
