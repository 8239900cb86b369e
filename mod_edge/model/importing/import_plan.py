"""What an import will write: the config, the tokenizer and where each tensor comes from.

All parts are opened and checked here, and fitted to each other. Nothing is written, and of the
weights only small ones are read.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mod_edge.bundle.manifest import CONFIG_FILE, TOKENIZER_FILE
from mod_edge.config import (
    EMBEDDING_WEIGHT,
    MoDConfig,
    ModelConfig,
    StreamConfig,
    TextConfig,
)
from mod_edge.errors import ConfigError
from mod_edge.model.checkpoint import tensor_shapes
from mod_edge.model.checkpoint_writer import DTYPE_NAMES
from mod_edge.model.importing.adapter import Adapter
from mod_edge.model.importing.connector import (
    check_connector,
    connector_names,
    connector_shapes,
    stand_in_connector,
)
from mod_edge.model.importing.decoder import ARCHITECTURES, decoder_shapes
from mod_edge.model.importing.parts import DecoderPart, open_decoder, open_vision
from mod_edge.model.importing.routers import RouterFile, Routers, initial_router
from mod_edge.model.importing.single_file import open_weight_file
from mod_edge.model.importing.source_folder import foreign_model_type
from mod_edge.model.importing.templates import AUTO, PLAIN, stream_config_for
from mod_edge.model.importing.tokenizer import imported_tokenizer
from mod_edge.model.importing.vision import VISION_MODEL_TYPES
from mod_edge.model.weight_files import WeightFiles

TORCH_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
LETTERBOX = "letterbox"  # a `frame_resize`
VIDEOLLM_ONLINE = (
    "the adapter has a connector: frames keep their aspect (letterbox) and --template auto is "
    "plain, as VideoLLM-online trains"
)
ROUTER = ".router."  # in the names of routers' tensors


@dataclass(frozen=True)
class ImportSources:
    """Where the parts of a checkpoint come from.

    Attributes:
        llm: folder of a Hugging Face decoder, with its tokenizer.
        vision: folder of a SigLIP vision tower.
        connector: safetensors file; None: the adapter's, or a stand-in.
        adapter: folder of a peft adapter that is merged into `llm`.
        routers: safetensors file of the MoD layers' routers; None: the adapter's, or untrained.
        template: of the conversation's strings: "auto", another name, or a file.
    """

    llm: Path
    vision: Path
    connector: Path | None = None
    adapter: Path | None = None
    routers: Path | None = None
    template: str | Path = AUTO


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the checkpoint to be.

    Attributes:
        dtype: of the tensor, that of its file.
        file: that it comes from; None for a stand-in.
        name: in that file, for messages.
        read: returns the tensor.
    """

    dtype: torch.dtype
    file: Path | None
    name: str
    read: Callable[[], Tensor]


Tensors = dict[str, PlannedTensor]  # by our names


@dataclass(frozen=True)
class ImportPlan:
    """All that an import writes, checked but for the numbers in the weights.

    Attributes:
        config: of the checkpoint.
        tokenizer: of the checkpoint.
        tensors: all that a checkpoint of this config holds.
        notes: sentences about what was chosen or ignored.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    tensors: Mapping[str, PlannedTensor]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Decoder:
    """The opened decoder, and its config and tensors with the adapter, if there is one."""

    part: DecoderPart
    adapter: Adapter | None
    text: TextConfig
    tensors: Tensors

    @property
    def has_connector(self) -> bool:
        """Whether the adapter brings a connector, as VideoLLM-online's does."""
        return self.adapter is not None and "connector.0.weight" in self.adapter.saved

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most weights."""
        counts: Counter[torch.dtype] = Counter()
        for name, shape in decoder_shapes(self.text).items():
            counts[self.tensors[name].dtype] += math.prod(shape)
        return counts.most_common(1)[0][0]


def plan_import(sources: ImportSources, mod: MoDConfig | None) -> ImportPlan:
    """Open and check all parts; `mod` says which layers are MoD layers, None that none is.

    Raises:
        CheckpointError: a part cannot be read, or parts do not fit each other.
        ConfigError: what a part computes is not supported, or settings contradict each other.
    """
    _refuse_exchanged(sources)
    decoder = _decoder_with_adapter(open_decoder(sources.llm), sources.adapter)
    vision = open_vision(sources.vision)
    notes = [*decoder.part.notes, *vision.notes]
    connector = _connector_part(sources, decoder, vision.config.hidden_size)
    tower = vision.config
    if decoder.has_connector:
        tower = replace(tower, frame_resize=LETTERBOX)
        notes.append(VIDEOLLM_ONLINE)
    tokenizer, stream = _conversation(sources, decoder, notes)
    config = ModelConfig(
        decoder.text,
        tower,
        stream,
        mod,
        frame_token_cls=vision.has_cls,
        dtype=str(decoder.dtype).removeprefix("torch."),
    )
    routers = _router_part(sources, decoder, config, notes)
    parts = {"connector": connector, "router": routers}
    untrained = (name for name, part in parts.items() if _has_stand_ins(part))
    config = replace(config, untrained_parts=tuple(untrained))
    tensors = _tensors_of(vision.source.weights, vision.names)
    tensors |= connector | decoder.tensors | routers
    return ImportPlan(config, tokenizer, tensors, tuple(notes))


def _refuse_exchanged(sources: ImportSources) -> None:
    """Refuse a vision tower as the decoder, or a decoder as the vision tower."""
    decoder_types = [each.model_type for each in ARCHITECTURES.values()]
    faults = [
        f"{option} {folder} is a {kind} ({CONFIG_FILE} has model_type={model_type!r}), give it to "
        f"{instead}"
        for option, folder, others, kind, instead in (
            ("--llm", sources.llm, VISION_MODEL_TYPES, "vision tower", "--vision"),
            ("--vision", sources.vision, decoder_types, "language model", "--llm"),
        )
        if (model_type := foreign_model_type(folder)) in others
    ]
    if faults:
        raise ConfigError("; ".join(faults))


def _decoder_with_adapter(part: DecoderPart, folder: Path | None) -> _Decoder:
    weights = part.source.weights
    if folder is None:
        return _Decoder(part, None, part.config, _tensors_of(weights, part.names))
    adapter = Adapter(folder, part.source.path, part.config, decoder_shapes(part.config))
    names = decoder_shapes(adapter.text)
    merged = {name: _merged_tensor(name, part.names, weights, adapter) for name in names}
    return _Decoder(part, adapter, adapter.text, merged)


def _merged_tensor(
    name: str, names: Mapping[str, str], weights: WeightFiles, adapter: Adapter
) -> PlannedTensor:
    """A tensor of the decoder with the adapter; a head that it unties begins as the embedding."""
    if name in adapter.saved:
        stored, their_name, read = adapter.saved[name], name, partial(adapter.read, name)
    else:
        their_name = names.get(name, names[EMBEDDING_WEIGHT])
        stored, read = weights.tensors[their_name], partial(weights.read, their_name)
    return PlannedTensor(
        TORCH_DTYPES[stored.dtype], stored.file, their_name, lambda: adapter.merged(name, read())
    )


def _connector_part(sources: ImportSources, decoder: _Decoder, vision_size: int) -> Tensors:
    """The connector of the file or of the adapter, or a stand-in."""
    hidden_size, adapter = decoder.text.hidden_size, decoder.adapter
    shapes = connector_shapes(vision_size, hidden_size)
    saved = {name for name in shapes if adapter is not None and name in adapter.saved}
    if sources.connector is not None:
        if saved:
            raise ConfigError(
                f"both {sources.connector} and the adapter {sources.adapter} have a connector; "
                "omit --connector"
            )
        weights = open_weight_file(sources.connector)
        names = connector_names(sources.connector, weights)
        stored = {name: weights.tensors[their_name] for name, their_name in names.items()}
        check_connector(sources.connector, stored, vision_size, hidden_size)
        return _tensors_of(weights, names)
    if adapter is not None and saved:
        stored = {name: adapter.saved[name] for name in saved}
        check_connector(adapter.path, stored, vision_size, hidden_size)
        return {
            name: PlannedTensor(
                TORCH_DTYPES[each.dtype], each.file, name, partial(adapter.read, name)
            )
            for name, each in stored.items()
        }
    return {
        name: PlannedTensor(
            decoder.dtype, None, name, partial(stand_in_connector, name, shape, decoder.dtype)
        )
        for name, shape in shapes.items()
    }


def _router_part(
    sources: ImportSources, decoder: _Decoder, config: ModelConfig, notes: list[str]
) -> Tensors:
    """The routers of the file or of the adapter, or untrained ones; none without MoD layers."""
    layers = config.mod_layers if config.has_router else ()
    adapter, size = decoder.adapter, decoder.text.hidden_size
    has_saved = adapter is not None and adapter.has_routers
    if has_saved and sources.routers is not None:
        raise ConfigError(
            f"both {sources.routers} and the adapter {sources.adapter} have routers; omit --routers"
        )
    if not layers:
        if sources.routers is not None:
            policy = (
                "full computation" if config.mod_config is None else config.mod_config.insertion
            )
            raise ConfigError(
                f"{sources.routers} has routers, but {policy} has none: omit the routers, or "
                "choose another policy"
            )
        if has_saved:
            notes.append(
                f"the routers of {sources.adapter} are not used: full computation has none "
                "(--policy mod has)"
            )
        return {}
    names = [name for name in tensor_shapes(config) if ROUTER in name]
    routers: Routers
    if sources.routers is not None:
        file, routers = sources.routers, RouterFile(sources.routers, layers, size)
    elif adapter is not None and has_saved:
        file, routers = adapter.path, adapter.routers(layers)
    else:
        return {
            name: PlannedTensor(
                decoder.dtype, None, name, partial(initial_router, name, size, decoder.dtype)
            )
            for name in names
        }
    tensors = {name: routers.read(name) for name in names}  # one row each
    return {
        name: PlannedTensor(tensor.dtype, file, name, partial(_itself, tensor))
        for name, tensor in tensors.items()
    }


def _conversation(
    sources: ImportSources, decoder: _Decoder, notes: list[str]
) -> tuple[Tokenizer, StreamConfig]:
    """The tokenizer, and the strings and ids of the protocol.

    An adapter that resizes the embedding brings the tokenizer of its rows.
    """
    folder, template = sources.llm, sources.template
    config = {**decoder.part.source.config, "vocab_size": decoder.text.vocab_size}
    adapter = decoder.adapter
    if adapter is not None:
        is_resized = config["vocab_size"] != decoder.part.source.config["vocab_size"]
        if is_resized and (adapter.path / TOKENIZER_FILE).exists():
            folder = adapter.path
    tokenizer = imported_tokenizer(folder, config)
    if template != AUTO or not decoder.has_connector:
        return tokenizer, stream_config_for(tokenizer, folder, config, template, note=notes.append)
    try:
        return tokenizer, stream_config_for(tokenizer, folder, config, PLAIN, note=notes.append)
    except ConfigError as exc:
        raise ConfigError(
            f"an adapter with a connector streams plain text, as VideoLLM-online's does, but "
            f"{exc}; if it was trained otherwise, give its --template"
        ) from exc


def _tensors_of(weights: WeightFiles, names: Mapping[str, str]) -> Tensors:
    """The tensors of opened files, given the name there of each of ours."""
    return {
        name: PlannedTensor(
            TORCH_DTYPES[weights.tensors[their_name].dtype],
            weights.tensors[their_name].file,
            their_name,
            partial(weights.read, their_name),
        )
        for name, their_name in names.items()
    }


def _has_stand_ins(part: Tensors) -> bool:
    return any(tensor.file is None for tensor in part.values())


def _itself(tensor: Tensor) -> Tensor:
    return tensor
