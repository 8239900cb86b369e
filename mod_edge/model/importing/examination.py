"""What `mod-edge import` would make of a Hugging Face folder, for `mod-edge inspect`."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mod_edge.config import StreamConfig, TextConfig, VisionConfig
from mod_edge.model.importing.parts import DecoderPart, VisionPart, open_decoder, open_vision
from mod_edge.model.importing.source_folder import foreign_model_type
from mod_edge.model.importing.templates import AUTO, stream_config_for
from mod_edge.model.importing.tokenizer import imported_tokenizer
from mod_edge.model.importing.vision import VISION_MODEL_TYPES


@dataclass(frozen=True)
class Examination:
    """A folder that import takes.

    Attributes:
        folder: the folder.
        option: of `mod-edge import` that takes it: "--llm" or "--vision".
        architecture: its class in transformers.
        config: the decoder or the vision tower of the checkpoint.
        stream_config: a decoder's strings and ids of a conversation; None for a vision tower.
        parameters: numbers of weights that are taken, by dtype.
        notes: sentences about what is chosen or ignored.
    """

    folder: Path
    option: str
    architecture: str
    config: TextConfig | VisionConfig
    stream_config: StreamConfig | None
    parameters: dict[str, int]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON document."""
        return {**asdict(self), "folder": str(self.folder)}


def examine(path: Path) -> Examination:
    """Open and check the folder at `path` as import does.

    Raises:
        CheckpointError: import refuses the folder, its tensors or its tokenizer.
        ConfigError: import refuses its config or its strings.
    """
    if foreign_model_type(path) in VISION_MODEL_TYPES:
        tower = open_vision(path)
        return _examination(tower, "--vision", None, tower.notes)
    decoder = open_decoder(path)
    notes = list(decoder.notes)
    config = decoder.source.config
    tokenizer = imported_tokenizer(path, config)
    stream = stream_config_for(tokenizer, path, config, AUTO, note=notes.append)
    return _examination(decoder, "--llm", stream, notes)


def _examination(
    part: DecoderPart | VisionPart,
    option: str,
    stream: StreamConfig | None,
    notes: Sequence[str],
) -> Examination:
    source = part.source
    parameters: Counter[str] = Counter()
    for name in part.names.values():
        stored = source.weights.tensors[name]
        parameters[stored.dtype] += math.prod(stored.shape)
    architectures = source.config.get("architectures") or [source.config.get("model_type")]
    return Examination(
        folder=source.path,
        option=option,
        architecture=str(architectures[0]),
        config=part.config,
        stream_config=stream,
        parameters=dict(parameters),
        notes=tuple(notes),
    )
