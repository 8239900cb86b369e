"""A training recipe: a TOML file as frozen dataclasses, checked when it is read.

    [model]
    init = "base"                # a checkpoint folder, relative to this file, or a preset's name
    full_computation = false     # true: no MoD layers, even if the checkpoint has some
    [model.mod_config]           # optional: replaces the checkpoint's
    [model.text_config]          # optional: replaces the checkpoint's; tensors whose name and shape
                                 # still fit are copied, the others start at random
    [train]
    trainable = ["connector", "model", "lm_head"]    # substrings of parameter names
    steps = 20000
    batch_clips = 10
    max_frames = 60
    learning_rate = 1e-3

`TrainConfig` lists the other fields of [train] and their defaults. The vision tower is never
trained.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mod_edge.config import ModelConfig, config_from_dict, config_to_dict
from mod_edge.dataclass_reader import TOML, dataclass_from_dict
from mod_edge.document_parser import parse_toml
from mod_edge.errors import CheckpointError, DataError, nearest_hint
from mod_edge.model.checkpoint_folder import download_advice, read_checkpoint_config
from mod_edge.model.presets import GEOMETRIES, preset_config

DTYPES = ("float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")
NO_AUXILIARY_LOSS = "none"
RENAMED = {"watch_weight": 'auxiliary_loss = "motion" and auxiliary_loss_weight'}

AnySection = TypeVar("AnySection")


@dataclass(frozen=True)
class TrainConfig:
    """The section [train].

    Attributes:
        trainable: a parameter is trained if its name contains one of these strings, like "router"
            in "model.layers.3.router.weight".
        steps: optimizer steps.
        batch_clips: clips per batch.
        max_frames: frames per clip in a batch; longer clips are cropped.
        learning_rate: the peak, after the warmup; a cosine then decays it to a tenth.
        accumulate: batches per step.
        warmup_ratio: share of the steps with linear warmup; 0..1.
        weight_decay: of matrices; norms, biases and the token embedding have none.
        clip_norm: maximum norm of the gradient.
        stream_loss_weight: weight of the decisions at frames; replies' tokens have weight 1.
        auxiliary_loss: the name of an additional loss, "motion" for videos of `mod-edge scenes`.
        auxiliary_loss_weight: its weight.
        roll_ratio: share of crops that look like a stream whose window has rolled; 0..1.
        unjudged_pairs: pairs of words like "red star"; in a turn that says the first, the loss
            hardly rules out the second. For combinations that the data leaves out on purpose.
        seed: of initial weights, crops and order.
        dtype: of matrix products; weights, optimizer and loss stay float32.
        save_every: steps between two saved states, from which `--resume` continues.
        device: "auto" is CUDA if there is a GPU.
    """

    trainable: tuple[str, ...]
    steps: int
    batch_clips: int
    max_frames: int
    learning_rate: float
    accumulate: int = 1
    warmup_ratio: float = 0.05
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    stream_loss_weight: float = 1.0
    auxiliary_loss: str = NO_AUXILIARY_LOSS
    auxiliary_loss_weight: float = 0.0
    roll_ratio: float = 0.5
    unjudged_pairs: tuple[str, ...] = ()
    seed: int = 0
    dtype: str = "float32"
    save_every: int = 500
    device: str = "auto"

    def __post_init__(self) -> None:
        whole = ("steps", "batch_clips", "accumulate", "save_every")
        above_zero = ("learning_rate", "clip_norm")
        at_least_zero = ("weight_decay", "stream_loss_weight", "auxiliary_loss_weight", "seed")
        is_weighted = self.auxiliary_loss_weight > 0
        ratios = ("warmup_ratio", "roll_ratio")
        wanted: list[tuple[str, bool, str]] = [
            *((name, getattr(self, name) >= 1, "at least 1") for name in whole),
            ("max_frames", self.max_frames >= 2, "at least 2, because one may be in the sink"),
            *((name, getattr(self, name) > 0, "above 0") for name in above_zero),
            *((name, getattr(self, name) >= 0, "0 or more") for name in at_least_zero),
            *((name, 0 <= getattr(self, name) <= 1, "0 to 1") for name in ratios),
            (
                "auxiliary_loss_weight",
                is_weighted == (self.auxiliary_loss != NO_AUXILIARY_LOSS),
                f"above 0 with an auxiliary_loss and 0 with {NO_AUXILIARY_LOSS!r}",
            ),
            ("trainable", bool(self.trainable), "at least one substring of parameter names"),
            ("dtype", self.dtype in DTYPES, f"one of {', '.join(DTYPES)}"),
            ("device", self.device in DEVICES, f"one of {', '.join(DEVICES)}"),
        ]
        faults = [
            f"{name}={getattr(self, name)!r}, wanted {wish}"
            for name, is_met, wish in wanted
            if not is_met
        ]
        if faults:
            raise DataError("; ".join(faults))


@dataclass(frozen=True)
class ModelSection:
    """The section [model]; both tables have the fields of config.json."""

    init: str
    full_computation: bool = False
    mod_config: dict[str, Any] | None = None
    text_config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if "\0" in self.init:
            raise DataError(f"init={self.init!r}, wanted a path or a preset's name")
        if self.full_computation and self.mod_config is not None:
            raise DataError("full_computation and mod_config contradict each other: omit one")


@dataclass(frozen=True)
class RecipeSections:
    """The sections of a recipe file."""

    model: dict[str, Any]
    train: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes:
        init: a checkpoint folder, or a preset's name.
        model: the config of the model to train.
        train: the section [train].
    """

    init: Path | str
    model: ModelConfig
    train: TrainConfig

    def to_json(self) -> dict[str, Any]:
        """A JSON document; names a checkpoint by its folder's name, without the path."""
        return {
            "init": self.init if isinstance(self.init, str) else self.init.name,
            "model": config_to_dict(self.model),
            "train": dataclasses.asdict(self.train),
        }


def read_recipe(path: Path) -> Recipe:
    """The recipe in the TOML file at `path`.

    Raises:
        DataError: the file is missing or not TOML, fields are unknown, missing or wrong (all of a
            section at once), or init is neither a checkpoint nor a preset.
        ConfigError: the model's config is invalid.
    """
    try:
        data = parse_toml(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise DataError(f"the recipe {path} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise DataError(f"the recipe {path} is not valid TOML: {exc}") from exc
    sections = _read(RecipeSections, data, str(path))
    train = _read(TrainConfig, sections.train, f"{path}: [train]")
    init, config = _model_config(sections.model, path)
    return Recipe(init, config, train)


def _read(kind: type[AnySection], data: dict[str, Any], where: str) -> AnySection:
    return dataclass_from_dict(kind, data, where, syntax=TOML, error=DataError, renamed=RENAMED)


def _model_config(data: dict[str, Any], path: Path) -> tuple[Path | str, ModelConfig]:
    origin = f"{path}: [model]"
    section = _read(ModelSection, data, origin)
    init, base = _base_config(section.init, path.parent, origin)
    document = config_to_dict(base)
    document |= {name: data[name] for name in ("mod_config", "text_config") if name in data}
    if section.full_computation:
        document["mod_config"] = None
    return init, config_from_dict(document, origin)


def _base_config(init: str, folder: Path, origin: str) -> tuple[Path | str, ModelConfig]:
    checkpoint = (folder / init).resolve()
    if init in GEOMETRIES:
        if checkpoint.is_dir():
            raise DataError(
                f"{origin}: init={init!r} is a preset, and {checkpoint} exists too; for the folder "
                f"write './{init}', for the preset rename the folder"
            )
        return init, preset_config(init)
    try:
        return checkpoint, read_checkpoint_config(checkpoint)
    except CheckpointError as exc:
        if os.path.lexists(checkpoint):
            raise DataError(f"{origin}: init={init!r}: {exc}") from exc
        advice = "" if checkpoint.parent.is_dir() else download_advice(init)
        raise DataError(
            f"{origin}: init={init!r} is not a preset{nearest_hint(init, GEOMETRIES)}, known are "
            f"{', '.join(GEOMETRIES)}, and there is no checkpoint at {checkpoint}: {advice or exc}"
        ) from exc
