"""A Hugging Face model's folder: config.json and safetensors files, opened and checked.

Everything that no part of an import could read is refused here, by name: pickled weights, packed
weights of quantized models, tensors of other dtypes, folders of mod-edge itself.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mod_edge.bundle.manifest import CONFIG_FILE, MANIFEST_FILE
from mod_edge.config import MODEL_TYPE
from mod_edge.document_parser import parse_json
from mod_edge.errors import CheckpointError, joined_faults
from mod_edge.model.checkpoint_folder import (
    COPY_AGAIN,
    NUM_FAULTS_SHOWN,
    require_config,
    require_files,
    unreadable,
)
from mod_edge.model.importing.single_file import PICKLE_SUFFIXES
from mod_edge.model.weight_files import FLOAT_DTYPES, StoredTensor, WeightFiles

KIND = "Hugging Face model"  # as messages call the folder
FOREIGN_FIELDS = {"architectures", "transformers_version", "model_type"}  # of their config.json
ADAPTER_CONFIG_FILE = "adapter_config.json"
PICKLE_STEMS = ("pytorch_model", "model", "consolidated")
# config.json's description of packed weights; the second name is an older one.
QUANTIZATION_FIELDS = ("quantization_config", "compression_config")
# Last parts of tensors' names that hold packed weights or their scales: GPTQ, AWQ, bitsandbytes,
# fp8, compressed-tensors.
PACKED_NAMES = frozenset(
    {
        *("qweight", "qzeros", "scales", "g_idx", "SCB", "absmax", "quant_map", "nested_absmax"),
        *("weight_scale", "weight_scale_inv", "input_scale", "weight_packed", "weight_shape"),
        *("weight_zero_point", "weight_blocks", "weight_scales"),
    }
)
FLOAT_ADVICE = (
    "download the model that it was quantized from, with float32, bfloat16 or float16 weights; "
    "mod-edge export quantizes it itself"
)
MISFIT_ADVICE = "download the folder again, or correct config.json if it is of another model"


class SourceFolder:
    """A checked, open folder; each tensor is read when it is requested.

    Attributes:
        path: of the folder.
        config: its config.json, parsed.
        weights: its tensors, all of a dtype in `FLOAT_DTYPES`.
    """

    def __init__(self, path: Path) -> None:
        """Open and check the folder at `path`.

        Raises:
            CheckpointError: not a folder of a Hugging Face model, files that are missing, damaged
                or pickled, or packed weights.
        """
        self.path = path
        self.config = _read_config(path)
        _require_float_config(path, self.config)
        _refuse_pickles(path, self.config)
        self.weights = WeightFiles(path)
        _require_float_tensors(path, self.weights.tensors)

    def document(self, name: str) -> dict[str, Any] | None:
        """The JSON object in the folder's file `name`, or None if there is no such file.

        Raises:
            CheckpointError: the file cannot be read or is not a JSON object.
        """
        return read_document(self.path, name)


def read_foreign_config(folder: Path) -> dict[str, Any] | None:
    """The config.json of a model that another library wrote into `folder`; None if there is none.

    None too for a bundle, for a checkpoint of mod-edge, for a folder that cannot be read, and for a
    config.json that is neither: then it is a damaged one of mod-edge's own.
    """
    if os.path.exists(folder / MANIFEST_FILE):  # False too where the folder cannot be read
        return None
    try:
        config = read_document(folder, CONFIG_FILE)
    except CheckpointError:
        return None
    if config is None or _is_ours(config) or not FOREIGN_FIELDS & config.keys():
        return None
    return config


def foreign_model_type(folder: Path) -> object:
    """The `model_type` in the config.json that `read_foreign_config` reads; None if it has none."""
    return (read_foreign_config(folder) or {}).get("model_type")


def read_document(folder: Path, name: str) -> dict[str, Any] | None:
    """The JSON object in a folder's file, or None if there is no such file.

    Raises:
        CheckpointError: the file cannot be read or is not a JSON object.
    """
    path = folder / name
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise unreadable(path, exc) from exc
    require_files(folder, [path])
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise unreadable(path, exc) from exc
    except ValueError as exc:
        raise CheckpointError(f"{path} is not valid JSON: {exc}; {COPY_AGAIN}") from exc
    if not isinstance(document, dict):
        kind = type(document).__name__
        raise CheckpointError(f"{path} contains a {kind}, wanted one JSON object; {COPY_AGAIN}")
    return document


def _read_config(folder: Path) -> dict[str, Any]:
    require_config(folder, KIND, advice=_advice_without_config(folder))
    config = read_document(folder, CONFIG_FILE)
    assert config is not None
    if (folder / MANIFEST_FILE).exists():
        raise CheckpointError(f"{folder} is a mod-edge bundle, wanted the folder of a {KIND}")
    if _is_ours(config):
        raise CheckpointError(
            f"{folder} is a mod-edge checkpoint already (model_type {MODEL_TYPE!r}), wanted the "
            f"folder of a {KIND}; mod-edge export takes the checkpoint as it is"
        )
    return config


def _is_ours(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == MODEL_TYPE


def _advice_without_config(folder: Path) -> str:
    if (folder / ADAPTER_CONFIG_FILE).exists():
        return f"it has {ADAPTER_CONFIG_FILE}: give an adapter with --adapter"
    if any(folder.glob("*.gguf")):
        return "GGUF files are not read; download the model's safetensors files and config.json"
    return "give a downloaded model's folder, with its config.json and safetensors files"


def _require_float_config(folder: Path, config: Mapping[str, Any]) -> None:
    for name in QUANTIZATION_FIELDS:
        value = config.get(name)
        if value is None:
            continue
        method = value.get("quant_method") if isinstance(value, dict) else None
        what = f"{name} with quant_method={method!r}" if method else name
        raise CheckpointError(
            f"{folder}: config.json has {what}: packed weights are not read; {FLOAT_ADVICE}"
        )


def _refuse_pickles(folder: Path, config: Mapping[str, Any]) -> None:
    if any(folder.glob("*.safetensors*")):
        return
    pickles = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in PICKLE_SUFFIXES and path.name.startswith(PICKLE_STEMS)
    )
    if pickles:
        raise CheckpointError(
            f"{folder} has its weights in {joined_faults(pickles, 2)}, which is pickled and not "
            "read, because unpickling can run any code; convert it where you trust it: "
            f"{_conversion(folder, config)}"
        )


def _conversion(folder: Path, config: Mapping[str, Any]) -> str:
    """The command that writes the folder's model as safetensors, with the class that it names."""
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else "AutoModelForCausalLM"
    return (
        f'python -c "from transformers import {architecture} as M; '
        f"M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder.name}-safetensors')"
        "\", and copy the tokenizer's files"
    )


def _require_float_tensors(folder: Path, tensors: Mapping[str, StoredTensor]) -> None:
    packed, others = [], []
    for name, stored in tensors.items():
        if name.rpartition(".")[2] in PACKED_NAMES or stored.dtype.startswith("F8_"):
            packed.append(f"{name!r} is {stored}")
        elif stored.dtype not in FLOAT_DTYPES:
            others.append(f"{name!r} is {stored}")
    if packed:
        shown = joined_faults(packed + others, NUM_FAULTS_SHOWN)
        raise CheckpointError(
            f"{folder}: weights are packed by quantization, which is not read: {shown}; "
            f"{FLOAT_ADVICE}"
        )
    if others:
        raise CheckpointError(
            f"{folder}: weights of other dtypes than {', '.join(FLOAT_DTYPES)}: "
            f"{joined_faults(others, NUM_FAULTS_SHOWN)}; convert them, such as with "
            "transformers: from_pretrained(..., dtype='float32').save_pretrained(...)"
        )
