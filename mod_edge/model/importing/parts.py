"""The two published parts of a checkpoint, each opened and checked whole: decoder, vision tower."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mod_edge.bundle.manifest import CONFIG_FILE
from mod_edge.config import TextConfig, VisionConfig
from mod_edge.model.importing.decoder import decoder_tensors, text_config_of, unknown_fields
from mod_edge.model.importing.source_folder import SourceFolder
from mod_edge.model.importing.vision import (
    NO_IMAGE_PROCESSOR,
    has_pooling_head,
    image_processor_of,
    vision_config_of,
    vision_tensors,
)


@dataclass(frozen=True)
class DecoderPart:
    """An opened decoder.

    Attributes:
        source: its folder.
        config: the decoder as ours.
        names: the name in the folder's files of each of our tensors.
        notes: sentences about what is ignored.
    """

    source: SourceFolder
    config: TextConfig
    names: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class VisionPart:
    """An opened vision tower.

    Attributes:
        source: its folder.
        config: the tower as ours.
        names: the name in the folder's files of each of our tensors.
        has_cls: whether it has the pooling head, whose output is a frame's CLS token.
        notes: sentences about what is assumed.
    """

    source: SourceFolder
    config: VisionConfig
    names: Mapping[str, str]
    has_cls: bool
    notes: tuple[str, ...]


def open_decoder(path: Path) -> DecoderPart:
    """The decoder in the Hugging Face folder at `path`.

    Raises:
        CheckpointError: the folder cannot be read, or its tensors do not fit its config.json.
        ConfigError: what it computes is not supported.
    """
    source = SourceFolder(path)
    origin = path / CONFIG_FILE
    config = text_config_of(source.config, str(origin))
    names = decoder_tensors(source, config)
    unknown = unknown_fields(source.config)
    notes = (f"{origin} has fields that are not read: {', '.join(unknown)}",) if unknown else ()
    return DecoderPart(source, config, names, notes)


def open_vision(path: Path) -> VisionPart:
    """The vision tower in the Hugging Face folder at `path`; the folder may have a text tower too.

    Raises:
        CheckpointError: the folder cannot be read, or its tensors do not fit its config.json.
        ConfigError: what it computes is not supported.
    """
    source = SourceFolder(path)
    processor = image_processor_of(source)
    config = vision_config_of(source.config, processor, str(path / CONFIG_FILE))
    has_cls = has_pooling_head(source)
    names = vision_tensors(source, config, has_head=has_cls)
    notes = []
    if processor is None:
        notes.append(f"{path} has {NO_IMAGE_PROCESSOR}")
    if not has_cls:
        notes.append(f"{path} has no pooling head: frames have no CLS token")
    return VisionPart(source, config, names, has_cls, tuple(notes))
