"""A training recipe: a TOML file as frozen dataclasses, checked once at the door.

    [model]
    init = "base"                # a checkpoint's folder, relative to this file, or a preset's name
    full_computation = false     # true: no MoD layers, whatever the checkpoint has
    [model.mod_config]           # optional: in place of the checkpoint's
    [model.text_config]          # optional, likewise: tensors whose name and shape still fit are
                                 # taken over, the others start at random
    [train]
    trainable = ["connector", "model", "lm_head"]    # parts of parameters' names
    steps = 20000
    batch_clips = 16
    max_frames = 40
    learning_rate = 1e-3

The other fields of [train] and their defaults: `TrainConfig`. The vision tower is never trained.
"""

import dataclasses
import math
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mod_edge.bundle.manifest import CONFIG_FILE
from mod_edge.config import ModelConfig, config_from_dict, config_to_dict, read_config
from mod_edge.errors import DataError
from mod_edge.model.presets import GEOMETRIES, preset_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MODEL_KEYS = ("init", "full_computation", "mod_config", "text_config")
DTYPES = ("float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class TrainConfig:
    """The section [train].

    Attributes:
        trainable: parts of names: a parameter is trained if its name holds one of them, like
            "router" of "model.layers.3.router.weight".
        steps: of the optimizer.
        batch_clips: clips of a batch.
        max_frames: of a clip in a batch; longer clips are cropped.
        learning_rate: the highest, after the warmup; a cosine leads down to a tenth of it.
        accumulate: batches of a step.
        warmup_ratio: share of the steps in which the learning rate rises; 0..1.
        weight_decay: of matrices; norms, biases and the token embedding have none.
        clip_norm: longest gradient.
        stream_loss_weight: of the decisions at frames beside the replies' tokens.
        watch_weight: of the lesson `watching`, which needs made-up scenes; 0 teaches words alone.
        roll_ratio: share of crops that look like a stream whose window has rolled; 0..1.
        seed: of initial weights, crops and order.
        dtype: of matrix products; weights, optimizer and loss stay float32.
        save_every: steps between two states that `--resume` can go on from.
        device: "auto" is CUDA where there is a GPU.
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
    watch_weight: float = 0.0
    roll_ratio: float = 0.5
    seed: int = 0
    dtype: str = "float32"
    save_every: int = 500
    device: str = "auto"

    def faults(self) -> list[str]:
        """What is out of range, as sentences."""
        whole = ("steps", "batch_clips", "accumulate", "save_every")
        above_zero = ("learning_rate", "clip_norm")
        at_least_zero = ("weight_decay", "stream_loss_weight", "watch_weight", "seed")
        ratios = ("warmup_ratio", "roll_ratio")
        wanted: list[tuple[str, bool, str]] = [
            *((name, getattr(self, name) >= 1, "at least 1") for name in whole),
            ("max_frames", self.max_frames >= 2, "at least 2: one may be in the sink"),
            *((name, getattr(self, name) > 0, "above 0") for name in above_zero),
            *((name, getattr(self, name) >= 0, "0 or more") for name in at_least_zero),
            *((name, 0 <= getattr(self, name) <= 1, "0 to 1") for name in ratios),
            ("trainable", bool(self.trainable), "some parts of parameters' names"),
            ("dtype", self.dtype in DTYPES, f"one of {', '.join(DTYPES)}"),
            ("device", self.device in DEVICES, f"one of {', '.join(DEVICES)}"),
        ]
        return [
            f"{name}={getattr(self, name)!r}, wanted {wish}"
            for name, is_met, wish in wanted
            if not is_met
        ]


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes:
        init: a checkpoint's folder, or a preset's name.
        model: the config of the model to be trained.
        train: how.
    """

    init: Path | str
    model: ModelConfig
    train: TrainConfig

    def to_json(self) -> dict[str, Any]:
        """A JSON document; of a checkpoint only the folder's name, wherever it lies."""
        return {
            "init": self.init if isinstance(self.init, str) else self.init.name,
            "model": config_to_dict(self.model),
            "train": dataclasses.asdict(self.train),
        }


def read_recipe(path: Path) -> Recipe:
    """The recipe in the TOML file at `path`.

    Raises:
        DataError: no such file, no TOML, unknown, missing or wrong fields (all of a section at
            once), or no checkpoint and no preset of that name.
        ConfigError: the model that it describes is not allowed.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise DataError(f"the recipe {path} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise DataError(f"the recipe {path} is not valid TOML: {exc}") from exc
    faults = _unknown(data, ("model", "train"), "section")
    for name in ("model", "train"):
        if not isinstance(data.get(name), dict):
            faults.append(f"no section [{name}]")
    if faults:
        raise DataError(f"{path}: {'; '.join(faults)}; see mod_edge/training/recipe.py")
    train = _train_config(data["train"], f"{path}: [train]")
    init, config = _model_config(data["model"], path)
    return Recipe(init, config, train)


def _train_config(data: dict[str, Any], origin: str) -> TrainConfig:
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    faults = _unknown(data, tuple(fields), "field")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = tuple(data[name]) if isinstance(data[name], list) else data[name]
            if not _has_type(values[name], field.type):
                faults.append(f"{name}={data[name]!r} is no {_type_name(field.type)}")
        elif field.default is dataclasses.MISSING:
            faults.append(f"missing field {name!r}")
    if not faults:
        config = TrainConfig(**values)
        faults = config.faults()
    if faults:
        raise DataError(f"{origin}: {'; '.join(faults)}")
    return config


def _model_config(data: dict[str, Any], path: Path) -> tuple[Path | str, ModelConfig]:
    origin = f"{path}: [model]"
    faults = _unknown(data, MODEL_KEYS, "field")
    if not isinstance(data.get("init"), str):
        faults.append("init is no string: it names a checkpoint's folder or a preset")
    is_full = data.get("full_computation", False)
    if not isinstance(is_full, bool):
        faults.append(f"full_computation={is_full!r} is no true or false")
    elif is_full and "mod_config" in data:
        faults.append("full_computation and mod_config contradict each other: leave one away")
    if faults:
        raise DataError(f"{origin}: {'; '.join(faults)}")
    init, base = _base_config(data["init"], path.parent, origin)
    document = config_to_dict(base)
    document |= {name: data[name] for name in ("mod_config", "text_config") if name in data}
    if is_full:
        document["mod_config"] = None
    return init, config_from_dict(document, origin)


def _base_config(init: str, folder: Path, origin: str) -> tuple[Path | str, ModelConfig]:
    checkpoint = (folder / init).resolve()
    if init in GEOMETRIES:
        if checkpoint.is_dir():
            raise DataError(
                f"{origin}: init={init!r} is a preset, and {checkpoint} is there too; for the "
                f"folder write './{init}', for the preset call the folder otherwise"
            )
        return init, preset_config(init)
    try:
        return checkpoint, read_config(checkpoint / CONFIG_FILE)
    except OSError as exc:
        near = get_close_matches(init, GEOMETRIES, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"{origin}: init={init!r} is no preset ({', '.join(GEOMETRIES)}{hint}), and no "
            f"checkpoint is at {checkpoint}: {exc.strerror}"
        ) from exc


def _unknown(data: dict[str, Any], known: tuple[str, ...], what: str) -> list[str]:
    faults = []
    for name in sorted(data.keys() - set(known)):
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        faults.append(f"unknown {what} {name!r}, {hint}")
    return faults


def _has_type(value: Any, wanted: Any) -> bool:
    if wanted == tuple[str, ...]:
        return isinstance(value, tuple) and all(isinstance(each, str) for each in value)
    if isinstance(value, bool):
        return False
    if wanted is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, wanted)


def _type_name(wanted: Any) -> str:
    if wanted == tuple[str, ...]:
        return "list of strings"
    return {int: "whole number", float: "number", str: "string"}[wanted]
