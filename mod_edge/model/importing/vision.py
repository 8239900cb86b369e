"""A SigLIP vision tower as ours: its config, its image processor and its tensors, or why not.

A tower comes alone (`SiglipVisionModel`) or with its text tower (`SiglipModel`), which also is what
SigLIP 2's models of one fixed size are. Omitted fields have the values of transformers 5.23. What
would be computed otherwise is refused by name and value.
"""

from collections.abc import Mapping
from typing import Any

import torch

from mod_edge.config import FRAME_RESAMPLES, VISION_ACTIVATIONS, VisionConfig
from mod_edge.dataclass_reader import JSON, dataclass_from_dict
from mod_edge.errors import ConfigError, shortened
from mod_edge.model.importing.source_folder import MISFIT_ADVICE, SourceFolder
from mod_edge.model.tensor_fit import misfits, raise_misfits
from mod_edge.model.vision import PIXEL_MAX, POOLING_HEAD, VisionTower

TOWER, PAIR = "siglip_vision_model", "siglip"  # model_type of the vision tower alone and of both
VISION_MODEL_TYPES = (TOWER, PAIR)
PREFIX = "vision_model."  # of our names, and of theirs but for towers that transformers 5 writes
OTHER_PARTS = ("text_model.", "logit_scale", "logit_bias")  # of a pair
DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
# transformers 5 writes processors in one file, others in one for each
PROCESSOR_FILE, IMAGE_PROCESSOR_FILE = "processor_config.json", "preprocessor_config.json"
PROCESSORS = ("SiglipImageProcessor", "SiglipImageProcessorFast", "SiglipImageProcessorPil")
PROCESSOR_DEFAULTS: Mapping[str, Any] = {
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 3,
    "do_center_crop": False,
    "do_pad": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": 0.5,
    "image_std": 0.5,
    "do_convert_rgb": True,
}
# Steps of a processor, each with the value that we compute; frames are RGB whatever is converted.
STEPS = {"do_resize": (True,), "do_center_crop": (False,), "do_pad": (False,)}
SWITCHES = {"do_rescale": (True, False), "do_normalize": (True, False)}
RESAMPLES = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's number
NO_IMAGE_PROCESSOR = (
    f"no {IMAGE_PROCESSOR_FILE}: frames are prepared as SigLIP's image processor does by default "
    "(stretched to image_size, bicubic, mean and std 0.5)"
)
NAFLEX = ("siglip2", "siglip2_vision_model")  # SigLIP 2 for pictures of any shape


def image_processor_of(source: SourceFolder) -> dict[str, Any] | None:
    """The settings of the folder's image processor; None if it has none.

    Raises:
        CheckpointError: a file cannot be read or is not a JSON object.
    """
    nested = (source.document(PROCESSOR_FILE) or {}).get("image_processor")
    return nested if isinstance(nested, dict) else source.document(IMAGE_PROCESSOR_FILE)


def vision_config_of(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None, origin: str
) -> VisionConfig:
    """The tower that a Hugging Face config.json describes, with its image processor.

    Args:
        config: the parsed config.json.
        preprocessor: from `image_processor_of`; None for SigLIP's defaults, see
            `NO_IMAGE_PROCESSOR`.
        origin: config.json's path; messages begin with it.

    Raises:
        ConfigError: another model; or all values at once that would be computed otherwise or are
            out of range.
    """
    section = _tower_section(config, origin)
    fields, faults = _tower_fields(section)
    image_size = fields["image_size"]
    processor = {"size": [image_size] * 2} if preprocessor is None else preprocessor
    pixels, pixel_faults = _pixel_fields(processor, image_size)
    faults += [f"image processor: {fault}" for fault in pixel_faults]
    given = {name: value for name, value in (fields | pixels).items() if value is not None}
    try:
        vision = dataclass_from_dict(VisionConfig, given, origin, syntax=JSON, error=ConfigError)
    except ConfigError as exc:
        faults.insert(0, str(exc).removeprefix(f"{origin}: ").replace("vision_config.", ""))
    if faults:
        where = origin if section is config else f"{origin}, vision_config"
        raise ConfigError(f"{where}: {'; '.join(faults)}")
    return vision


def has_pooling_head(source: SourceFolder) -> bool:
    """Whether the folder has the attention-pooling head, whose output is a frame's CLS token."""
    head = _their_prefix(source) + POOLING_HEAD.removeprefix(PREFIX)
    return any(name.startswith(head) for name in source.weights.tensors)


def vision_tensors(
    source: SourceFolder, vision: VisionConfig, *, has_head: bool = True
) -> dict[str, str]:
    """The name in the folder's files of each of our vision tower's tensors.

    Args:
        source: the folder.
        vision: of its tower.
        has_head: whether our model has the pooling head, as `frame_token_cls` says; the folder's
            is ignored otherwise, as a text tower always is.

    Raises:
        CheckpointError: all missing, unexpected and misshapen tensors at once, by the files' names.
    """
    prefix, tensors = _their_prefix(source), source.weights.tensors
    with torch.device("meta"):
        tower = VisionTower(vision, has_head=has_head)
    shapes = {prefix + name: tuple(each.shape) for name, each in tower.named_parameters()}
    head = prefix + POOLING_HEAD.removeprefix(PREFIX)
    ignored = OTHER_PARTS if has_head else (*OTHER_PARTS, head)
    faults = []
    missing = shapes.keys() - tensors.keys()
    if has_head and not has_pooling_head(source):
        missing = {name for name in missing if not name.startswith(head)}
        faults.append(
            f"no pooling head ({head}*), whose output is a frame's CLS token; only a model with "
            "frame_token_cls = false does without"
        )
    faults += [f"no tensor {name!r}" for name in missing]
    faults += misfits(tensors, shapes, lambda name: name.startswith(ignored))
    raise_misfits(source.path, faults, advice=MISFIT_ADVICE)
    return {PREFIX + name.removeprefix(prefix): name for name in shapes}


def _their_prefix(source: SourceFolder) -> str:
    return PREFIX if any(name.startswith(PREFIX) for name in source.weights.tensors) else ""


def _tower_section(config: Mapping[str, Any], origin: str) -> Mapping[str, Any]:
    """The part of config.json with the tower's fields."""
    model_type, section = config.get("model_type"), config.get("vision_config")
    inner = section if isinstance(section, dict) else {}
    if model_type == TOWER:
        return config
    if model_type != PAIR:
        raise ConfigError(
            f"{origin}: model_type={shortened(model_type)}, wanted {TOWER} (a vision tower alone) "
            f"or {PAIR} (with its text tower){_advice(model_type, inner)}"
        )
    if section is not None and not isinstance(section, dict):
        raise ConfigError(f"{origin}: vision_config={shortened(section)}, wanted an object")
    kind = inner.get("model_type", TOWER)
    if kind != TOWER:
        raise ConfigError(
            f"{origin}: vision_config.model_type={shortened(kind)}, wanted {TOWER}"
            f"{_advice(kind, {})}"
        )
    return inner


def _advice(model_type: Any, inner: Mapping[str, Any]) -> str:
    """What to do instead, for a model with this tower inside."""
    if model_type in NAFLEX:
        return "; this one takes pictures of any shape (NaFlex), use SigLIP 2 of a fixed size"
    kind, name = inner.get("model_type"), inner.get("_name_or_path")
    if kind == TOWER:
        where = f" (its vision_config says {shortened(name)})" if name else ""
        return f"; it is an image-text model with a SigLIP tower: give that tower's folder{where}"
    return f"; its vision tower is {shortened(kind)}, which computes otherwise" if kind else ""


def _tower_fields(section: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Fields of `VisionConfig` from a tower's, and faults; a field with a fault is None."""
    fields, faults = {}, []
    for name, default in DEFAULTS.items():
        value = section.get(name)
        fields[name] = default if value is None else value
    num_channels = fields.pop("num_channels")
    if num_channels != DEFAULTS["num_channels"]:
        faults.append(f"num_channels={shortened(num_channels)}, wanted 3 (red, green, blue)")
    if fields["hidden_act"] not in VISION_ACTIVATIONS:
        known = ", ".join(VISION_ACTIVATIONS)
        faults.append(f"hidden_act={shortened(fields['hidden_act'])}, wanted one of {known}")
        fields["hidden_act"] = None
    for name in ("image_size", "patch_size"):
        sides = fields[name] if isinstance(fields[name], list) else [fields[name]]
        if len(sides) not in (1, 2) or sides[0] != sides[-1]:
            faults.append(f"{name}={shortened(sides)}, wanted one number: a square")
        fields[name] = sides[0] if sides else None
    return fields, faults


def _pixel_fields(
    preprocessor: Mapping[str, Any], image_size: Any
) -> tuple[dict[str, Any], list[str]]:
    """Fields of `VisionConfig` from an image processor's, and faults."""
    values = {}
    for name, default in PROCESSOR_DEFAULTS.items():
        value = preprocessor.get(name)
        values[name] = default if value is None else value  # as transformers reads a null
    faults = _type_faults(preprocessor)
    for name, taken in (STEPS | SWITCHES).items():
        if values[name] not in taken:
            wanted = " or ".join(str(each).lower() for each in taken)
            faults.append(f"{name}={shortened(values[name])}, wanted {wanted}")
    faults += _size_faults(values["size"], image_size)
    resample = values["resample"]
    is_known = type(resample) is int and 0 <= resample < len(RESAMPLES)
    kernel = RESAMPLES[resample] if is_known else None
    if kernel not in FRAME_RESAMPLES:
        what = f"{shortened(resample)}{f' ({kernel})' if kernel else ''}"
        faults.append(f"resample={what}, wanted 3 (bicubic) or 2 (bilinear)")
    mean, std, more = _normalization(values)
    if faults or more:
        return {}, faults + more
    return {
        "image_mean": mean,
        "image_std": std,
        "frame_resize": "stretch",
        "frame_resample": kernel,
    }, []


def _type_faults(preprocessor: Mapping[str, Any]) -> list[str]:
    faults = []
    for name in ("image_processor_type", "feature_extractor_type"):  # the second in older files
        kind = preprocessor.get(name)
        if kind is not None and kind not in PROCESSORS:
            faults.append(f"{name}={shortened(kind)}, wanted {PROCESSORS[0]}")
    return faults


def _size_faults(size: Any, image_size: Any) -> list[str]:
    """What is wrong with a processor's `size`, for a tower of `image_size`."""
    wanted = f'wanted {{"height": {image_size}, "width": {image_size}}}, the tower\'s image_size'
    if isinstance(size, list) and len(size) == 2:
        size = dict(zip(("height", "width"), size, strict=True))
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        is_same = size["height"] == size["width"] == image_size
        return [] if is_same else [f"size={shortened(size)}, {wanted}"]
    # one number is the shortest edge: the pictures are not square
    return [f"size={shortened(size)} keeps the aspect, {wanted}"]


def _normalization(
    values: Mapping[str, Any],
) -> tuple[tuple[float, ...], tuple[float, ...], list[str]]:
    """Mean and deviation for pixels of 0..1, and faults.

    Theirs is (pixel * rescale_factor - mean) / std for pixels of 0..255; another factor than 1/255,
    or none, goes into mean and deviation.
    """
    faults = []
    factor = values["rescale_factor"] if values["do_rescale"] else 1.0
    if not _is_number(factor) or factor <= 0:
        faults.append(f"rescale_factor={shortened(factor)}, wanted a number above 0")
        factor = 1 / PIXEL_MAX
    scale = factor * PIXEL_MAX
    scale = 1.0 if abs(scale - 1) < 1e-6 else scale  # 1/255 is written with few or many digits
    folded = []
    for name, without in (("image_mean", 0.0), ("image_std", 1.0)):
        value = values[name] if values["do_normalize"] else without
        channels = value if isinstance(value, list) else [value] * 3
        if len(channels) != 3 or not all(map(_is_number, channels)):
            faults.append(f"{name}={shortened(value)}, wanted one number or three")
            channels = [0.5] * 3
        folded.append(tuple(channel / scale for channel in channels))
    mean, std = folded
    return mean, std, faults


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)
