"""SigLIP folders: configs, image processors and tensors as ours, or refused by name and value."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mod_edge.config import VISION_ACTIVATIONS, VisionConfig
from mod_edge.errors import CheckpointError, ConfigError
from mod_edge.model.importing.source_folder import SourceFolder
from mod_edge.model.importing.vision import (
    has_pooling_head,
    image_processor_of,
    vision_config_of,
    vision_tensors,
)
from mod_edge.model.vision import FrameEncoder, VisionTower
from mod_edge.runtime.preprocess import fit_frame
from tests.model.test_reference import RTOL_SIGLIP, relative_error
from tests.runtime.test_preprocess import textured_frame

pytestmark = pytest.mark.numeric

REAL_VIT = "MOD_EDGE_REAL_VIT"  # a folder with a trained tower, for the slow test
ATOL_REAL = 1e-4  # measured 2.9e-5, of features up to 6.8
# Levels of 255: measured 2.0 and 22; OpenCV's resize has 8.8 and 131, letterboxing 59 and 251.
MEAN_LEVELS, MAX_LEVELS = 2.5, 30
MAX_LEVELS_NORMALISED = 1e-3  # nothing is resized; measured 2e-5
# Two pixels are cut off, 16 patches, 3 heads of 14.
GEOMETRY = {
    "hidden_size": 42,
    "intermediate_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 30,
    "patch_size": 7,
}
TOWER = {"model_type": "siglip_vision_model", **GEOMETRY}
PROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "size": {"height": 30, "width": 30},
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def vision_of(config=TOWER, processor=PROCESSOR):
    return vision_config_of(config, processor, "vit/config.json")


def refusal(config=TOWER, processor=PROCESSOR):
    with pytest.raises(ConfigError) as caught:
        vision_of(config, processor)
    message = str(caught.value)
    assert message.startswith("vit/config.json")
    return message


# ---- configs ----


def test_a_tower_alone_and_one_with_its_text_tower_are_the_same():
    wanted = VisionConfig(42, 50, 2, 3, image_size=30, patch_size=7, frame_resize="stretch")
    assert vision_of() == wanted
    inner = {"model_type": "siglip", "vision_config": GEOMETRY, "text_config": {"vocab_size": 9}}
    assert vision_of(inner) == wanted
    assert vision_of(TOWER | {"image_size": [30, 30], "patch_size": [7, 7]}) == wanted


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "siglip_vision_model"},
        {"model_type": "siglip"},
        {"model_type": "siglip", "vision_config": {"hidden_size": None}},
    ],
)
def test_omitted_fields_have_the_values_of_transformers(config):
    from transformers import SiglipVisionConfig

    theirs, ours = SiglipVisionConfig(), vision_of(config, None)
    for name in (*GEOMETRY, "hidden_act", "layer_norm_eps"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_the_activation_and_the_norms_epsilon_are_those_of_the_folder():
    vision = vision_of(TOWER | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5})
    assert (vision.hidden_act, vision.layer_norm_eps) == ("quick_gelu", 1e-5)


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({}, "model_type=None, wanted siglip_vision_model (a vision tower alone) or siglip"),
        ({"model_type": "siglip2_vision_model"}, "pictures of any shape (NaFlex), use SigLIP 2 of"),
        ({"model_type": "siglip2", "vision_config": {}}, "pictures of any shape"),
        (
            {"model_type": "clip", "vision_config": {"model_type": "clip_vision_model"}},
            "its vision tower is 'clip_vision_model', which computes otherwise",
        ),
        (
            {
                "model_type": "llava",
                "vision_config": {"model_type": "siglip_vision_model", "_name_or_path": "a/b"},
            },
            "with a SigLIP tower: give that tower's folder (its vision_config says 'a/b')",
        ),
        ({"model_type": "siglip", "vision_config": 3}, "vision_config=3, wanted an object"),
        (
            {"model_type": "siglip", "vision_config": {"model_type": "dinov2"}},
            "vision_config.model_type='dinov2', wanted siglip_vision_model",
        ),
    ],
)
def test_another_model_is_named_with_those_that_are_taken(config, fault):
    assert fault in refusal(config)


def test_all_values_of_a_tower_that_would_be_computed_otherwise_are_named_at_once():
    changes = {
        "num_channels": 4,
        "hidden_act": "relu",
        "image_size": [30, 28],
        "patch_size": "7",
        "num_attention_heads": 0,
    }
    message = refusal(TOWER | changes, None)
    for fault in (
        "num_channels=4, wanted 3",
        "hidden_act='relu', wanted one of gelu_pytorch_tanh, gelu, quick_gelu",
        "image_size=[30, 28], wanted one number: a square",
        "patch_size='7', wanted a whole number",
    ):
        assert fault in message
    inner = {"model_type": "siglip", "vision_config": GEOMETRY | {"num_channels": 1}}
    assert refusal(inner).startswith("vit/config.json, vision_config: num_channels=1")
    assert "num_attention_heads=0, wanted above 0" in refusal(TOWER | {"num_attention_heads": 0})


# ---- image processors ----


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, {}),
        ({"size": [30, 30], "resample": None, "do_convert_rgb": None, "image_mean": 0.5}, {}),
        ({"do_center_crop": False, "crop_size": 24, "rescale_factor": 0.00392157}, {}),
        (
            {"image_processor_type": "SiglipImageProcessorFast", "resample": 2},
            {"frame_resample": "bilinear"},
        ),
        (
            {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]},
            {"image_mean": (0.1, 0.2, 0.3), "image_std": (1, 2, 3)},
        ),
        ({"do_normalize": False}, {"image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}),
        (
            {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": [2.0, 1.0, 1.0]},
            {"image_std": (1.0, 0.5, 0.5)},
        ),
        (
            {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
            {},
        ),
    ],
)
def test_an_image_processor_is_read_whole(changes, fields):
    vision = vision_of(processor=PROCESSOR | changes)
    assert vision == replace(vision_of(), **fields)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "wanted SiglipImageProcessor"),
        ({"feature_extractor_type": "ViTFeatureExtractor"}, "wanted SiglipImageProcessor"),
        ({"do_resize": False}, "do_resize=False, wanted true"),
        ({"do_center_crop": True}, "do_center_crop=True, wanted false"),
        ({"do_pad": True}, "do_pad=True, wanted false"),
        ({"do_rescale": "yes"}, "do_rescale='yes', wanted true or false"),
        ({"size": 30}, 'size=30 keeps the aspect, wanted {"height": 30, "width": 30}'),
        ({"size": {"shortest_edge": 30}}, "size={'shortest_edge': 30} keeps the aspect"),
        ({"size": {"height": 30, "width": 28}}, 'wanted {"height": 30, "width": 30}, the tower\'s'),
        ({"size": None}, "size={'height': 224, 'width': 224}, wanted"),
        ({"resample": 0}, "resample=0 (nearest), wanted 3 (bicubic) or 2 (bilinear)"),
        ({"resample": 1}, "resample=1 (lanczos)"),
        ({"resample": "bicubic"}, "resample='bicubic', wanted 3"),
        ({"rescale_factor": 0}, "rescale_factor=0, wanted a number above 0"),
        ({"image_mean": [0.5]}, "image_mean=[0.5], wanted one number or three"),
        ({"image_mean": [124, 116, 104]}, "image_mean=[124.0, 116.0, 104.0], wanted each 0 to 1"),
        ({"image_std": 0}, "image_std=[0.0, 0.0, 0.0], wanted each above 0"),
    ],
)
def test_a_step_that_would_be_computed_otherwise_is_refused_by_name_and_value(changes, fault):
    assert fault in refusal(processor=PROCESSOR | changes)


def test_faults_of_tower_and_image_processor_are_named_at_once():
    message = refusal(TOWER | {"num_channels": 1}, PROCESSOR | {"resample": 4, "do_pad": True})
    assert "num_channels=1" in message
    assert "image processor: do_pad=True" in message
    assert "image processor: resample=4 (box)" in message


def test_without_an_image_processor_frames_are_stretched_to_the_towers_size(tmp_path):
    source = SourceFolder(write_tower(tmp_path))
    assert image_processor_of(source) is None
    assert vision_of(source.config, None) == vision_of()


def test_the_processor_of_a_model_of_several_parts_comes_first(tmp_path):
    folder = write_tower(tmp_path)
    (folder / "preprocessor_config.json").write_text('{"resample": 3}')
    assert image_processor_of(SourceFolder(folder)) == {"resample": 3}
    (folder / "processor_config.json").write_text('{"processor_class": "SiglipProcessor"}')
    assert image_processor_of(SourceFolder(folder)) == {"resample": 3}
    (folder / "processor_config.json").write_text('{"image_processor": {"resample": 2}}')
    assert image_processor_of(SourceFolder(folder)) == {"resample": 2}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resample": 2, "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]},
        {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0},
        {"do_rescale": False, "do_normalize": False},
    ],
    ids=["siglip", "bilinear, by channel", "another factor", "raw"],
)
@pytest.mark.parametrize(("height", "width"), [(360, 640), (213, 150), (101, 101)])
def test_the_tower_gets_the_pixels_of_transformers_image_processor(
    make_config, tmp_path, changes, height, width
):
    from transformers import AutoImageProcessor

    folder = write_tower(tmp_path, image_size=101)
    processor = PROCESSOR | {"size": {"height": 101, "width": 101}} | changes
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    frame = textured_frame(height, width)
    rgb = np.ascontiguousarray(frame[..., ::-1])
    theirs = AutoImageProcessor.from_pretrained(folder)(images=[rgb], return_tensors="pt")

    source = SourceFolder(folder)
    vision = vision_of(source.config, image_processor_of(source))
    fitted = np.empty((101, 101, 3), np.uint8)
    fit_frame(frame, fitted, vision)
    encoder = FrameEncoder(replace(make_config(), vision_config=vision))
    ours = encoder.pixel_values(torch.from_numpy(fitted)[None])
    scale = 255 * torch.tensor(vision.image_std)[:, None, None]  # from pixel_values to levels
    difference = (ours - theirs["pixel_values"]).abs() * scale
    assert difference.mean() <= MEAN_LEVELS
    assert difference.max() <= (MAX_LEVELS if height != width else MAX_LEVELS_NORMALISED)


# ---- tensors ----


def write_tower(folder, prefix="", has_text_tower=False, **fields):
    """A folder that transformers wrote, its weights seeded; names begin with `prefix`."""
    from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel

    if has_text_tower:
        text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
        text |= {"num_attention_heads": 1, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
        model = SiglipModel(SiglipConfig(vision_config=GEOMETRY | fields, text_config=text))
    else:
        model = SiglipVisionModel(SiglipVisionConfig(**GEOMETRY | fields))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.1 * noise + ("norm" in name and name.endswith("weight"))
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = {prefix + name: tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    return folder


def rewrite(folder, change):
    """The folder with its tensors changed in place by `change(tensors)`."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return SourceFolder(folder)


def loaded_tower(source, vision):
    """Our tower with the folder's weights."""
    tower = VisionTower(vision, has_head=True).eval().requires_grad_(False)
    names = vision_tensors(source, vision)
    weights = {
        ours.removeprefix("vision_model."): source.weights.read(theirs)
        for ours, theirs in names.items()
    }
    tower.load_state_dict(weights)  # strict: all names, no others
    return tower


@pytest.mark.parametrize("hidden_act", VISION_ACTIVATIONS)
@pytest.mark.parametrize(
    ("prefix", "has_text_tower"),
    [("", False), ("vision_model.", False), ("", True)],
    ids=["no prefix", "prefix", "with a text tower"],
)
def test_the_tower_computes_what_transformers_does(tmp_path, hidden_act, prefix, has_text_tower):
    from transformers import SiglipVisionModel

    folder = write_tower(tmp_path, prefix, has_text_tower, hidden_act=hidden_act)
    source = SourceFolder(folder)
    hidden, cls = loaded_tower(source, vision_of(source.config))(pixels_of(30))
    theirs = SiglipVisionModel.from_pretrained(folder).eval().requires_grad_(False)(pixels_of(30))
    assert relative_error(hidden, theirs.last_hidden_state) <= RTOL_SIGLIP
    assert relative_error(cls[:, 0], theirs.pooler_output) <= RTOL_SIGLIP


def pixels_of(side):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_a_model_without_cls_needs_no_pooling_head(tmp_path, prefix):
    source = SourceFolder(write_tower(tmp_path, prefix))
    assert has_pooling_head(source)
    names = vision_tensors(source, vision_of(), has_head=False)
    assert not [name for name in names if "head." in name]

    headless = write_tower(tmp_path / "headless", prefix, vision_use_head=False)
    source = SourceFolder(headless)
    assert not has_pooling_head(source)
    assert vision_tensors(source, vision_of(source.config), has_head=False) == names
    with pytest.raises(CheckpointError, match=rf"no pooling head \({prefix}head\.\*\).*CLS") as one:
        vision_tensors(source, vision_of(source.config))
    assert "no tensor" not in str(one.value)


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_all_faults_of_the_tensors_are_named_at_once_in_the_files_names(tmp_path, prefix):
    def change(tensors):
        del tensors[f"{prefix}post_layernorm.bias"], tensors[f"{prefix}head.probe"]
        tensors["classifier.weight"] = torch.zeros(2, 3)
        name = f"{prefix}embeddings.position_embedding.weight"
        tensors[name] = tensors[name][:-1].clone()

    source = rewrite(write_tower(tmp_path, prefix), change)
    with pytest.raises(CheckpointError) as caught:
        vision_tensors(source, vision_of())
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: tensors do not fit config.json: ")
    for fault in (
        f"no tensor '{prefix}post_layernorm.bias'",
        f"no tensor '{prefix}head.probe'",
        "unknown tensor 'classifier.weight' (F32 [2, 3] in model.safetensors)",
        f"'{prefix}embeddings.position_embedding.weight' is F32 [15, 42] in model.safetensors, "
        "config.json wants [16, 42]",
    ):
        assert fault in message


@pytest.mark.slow
def test_a_trained_tower_computes_what_transformers_does(make_config):
    folder = os.environ.get(REAL_VIT)
    if folder is None:
        pytest.skip(f"set {REAL_VIT} to the folder of a trained SigLIP vision tower")
    from transformers import AutoImageProcessor, SiglipVisionModel

    source = SourceFolder(Path(folder))
    vision = vision_of(source.config, image_processor_of(source))
    fitted = np.empty((vision.image_size, vision.image_size, 3), np.uint8)
    fit_frame(textured_frame(360, 640), fitted, vision)
    # The resized picture: differences of resizing are measured above.
    inputs = AutoImageProcessor.from_pretrained(folder)(images=[fitted], return_tensors="pt")
    theirs = SiglipVisionModel.from_pretrained(folder).eval().requires_grad_(False)(**inputs)

    encoder = FrameEncoder(replace(make_config(), vision_config=vision))
    pixel_values = encoder.pixel_values(torch.from_numpy(fitted)[None])
    hidden, cls = loaded_tower(source, vision)(pixel_values)
    assert (hidden - theirs.last_hidden_state).abs().max() <= ATOL_REAL
    assert (cls[:, 0] - theirs.pooler_output).abs().max() <= ATOL_REAL
