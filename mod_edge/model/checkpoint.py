"""A checkpoint folder: config.json, tokenizer.json and safetensors under Hugging Face's names.

Tensors are `vision_model.*` (SigLIP), `connector.0|2.*`, `model.*` and `lm_head.weight` (Llama) and
`model.layers.N.router.*` (LayerExpert). Names and shapes are checked from the files' headers, all
faults at once, before a single weight is read.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mod_edge.bundle.manifest import CONFIG_FILE, MANIFEST_FILE, TOKENIZER_FILE, file_sha256
from mod_edge.bundle.staging import FolderKind
from mod_edge.config import HEAD_WEIGHT, ModelConfig, read_config
from mod_edge.document_parser import parse_json
from mod_edge.errors import BundleError, CheckpointError, ConfigError, joined_faults
from mod_edge.model.video_llm import VideoLLM
from mod_edge.plan.tokenizer import read_tokenizer

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
NUM_FAULTS_SHOWN = 12
FLOAT_DTYPES = ("F32", "BF16", "F16")


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this config holds, in file order."""
    with torch.device("meta"):
        model = VideoLLM(config)
    return {name: tuple(param.shape) for name, param in model.named_parameters()}


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` contains a VideoLLM-MoD checkpoint's config and is not a bundle."""
    if (folder / MANIFEST_FILE).exists():
        return False
    try:
        read_config(folder / CONFIG_FILE)
    except (OSError, ConfigError):
        return False
    return True


CHECKPOINT = FolderKind(
    CONFIG_FILE,
    is_checkpoint,
    re.compile(
        r"(config|tokenizer|training)\.json|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
        r"|MODEL_CARD\.md|loss\.png"
    ),
)


class Checkpoint:
    """A checked, open checkpoint; each tensor is read when it is requested."""

    def __init__(self, path: Path) -> None:
        """Open and check the folder at `path`.

        Raises:
            CheckpointError: not a checkpoint, or damaged, missing, unknown or misshapen tensors.
            ConfigError: config.json is invalid.
        """
        self.path = path
        self.config = _read_config(path)
        self.tokenizer = read_tokenizer(path / TOKENIZER_FILE, self.config)
        self._shapes = tensor_shapes(self.config)
        self._files = _weight_files(path)
        self._file_of = self._check_headers()

    def tensor(self, name: str) -> Tensor:
        """The weight called `name`, in the file's dtype; a tied head is the embedding."""
        if name == HEAD_WEIGHT:
            name = self.config.text_config.head_weight
        with safe_open(self._file_of[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def tensors(self, *prefixes: str) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor of all weights whose name starts with one of `prefixes`, one at a time.

        A tied head is included under its own name, `HEAD_WEIGHT`.
        """
        for name in dict.fromkeys((*self._shapes, HEAD_WEIGHT)):
            if name.startswith(prefixes):
                yield name, self.tensor(name)

    def load_model(self) -> VideoLLM:
        """The reference model in float32, whole in memory."""
        with torch.device("meta"):
            model = VideoLLM(self.config)
        model.load_weights({name: self.tensor(name).to(torch.float32) for name in self._shapes})
        return model.eval().requires_grad_(False)

    def fingerprint(self) -> str:
        """sha256 over config, tokenizer and weights: the same for equal checkpoints."""
        digest = hashlib.sha256()
        for file in (self.path / CONFIG_FILE, self.path / TOKENIZER_FILE, *self._files):
            digest.update(file_sha256(file).encode())
        return digest.hexdigest()

    def _check_headers(self) -> Mapping[str, Path]:
        file_of: dict[str, Path] = {}
        faults: list[str] = []
        for path in self._files:
            for name, (shape, dtype) in _header(path).items():
                wanted = self._shapes.get(name)
                if name == HEAD_WEIGHT != self.config.text_config.head_weight:
                    continue  # some tools also write a tied head, which is the embedding
                if name in file_of:
                    faults.append(f"{name!r} is in {file_of[name].name} and in {path.name}")
                if dtype not in FLOAT_DTYPES:
                    faults.append(f"{name!r} is {dtype}, wanted one of {', '.join(FLOAT_DTYPES)}")
                if wanted is None:
                    faults.append(f"unknown tensor {name!r}")
                elif shape != wanted:
                    faults.append(f"{name!r} is {list(shape)}, config.json wants {list(wanted)}")
                file_of[name] = path
        faults += [f"no tensor {name!r}" for name in self._shapes.keys() - file_of.keys()]
        if faults:
            shown = joined_faults(sorted(faults), NUM_FAULTS_SHOWN)
            raise CheckpointError(
                f"{self.path}: tensors do not fit config.json: {shown}; "
                "fix config.json or write the checkpoint again"
            )
        return file_of


def checkpoint_of_bundle(path: Path, fingerprint: str) -> Checkpoint:
    """The checkpoint at `path`, which must be the one with the fingerprint in a bundle's manifest.

    Raises:
        CheckpointError: it is damaged.
        BundleError: the bundle was made from another checkpoint.
    """
    checkpoint = Checkpoint(path)
    if checkpoint.fingerprint() != fingerprint:
        raise BundleError(
            f"{path} is not the checkpoint that the bundle was made from (their fingerprints "
            "differ); give that checkpoint, or export this one again"
        )
    return checkpoint


def _read_config(path: Path) -> ModelConfig:
    if not (path / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{path} is not a checkpoint (no {CONFIG_FILE}); "
            f"create one with random weights with: mod-edge init tiny {path}"
        )
    try:
        return read_config(path / CONFIG_FILE)
    except OSError as exc:
        raise ConfigError(f"{path / CONFIG_FILE} cannot be read: {exc}") from exc


def _weight_files(path: Path) -> list[Path]:
    index = path / INDEX_FILE
    if not index.is_file():
        files = [path / WEIGHTS_FILE]
    else:
        try:
            names = parse_json(index.read_text(encoding="utf-8"))["weight_map"].values()
            files = [path / name for name in sorted(set(names))]
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise CheckpointError(
                f"{index} is not a safetensors index ({exc!r}); copy the checkpoint again"
            ) from exc
        # Checked by name, not resolved: a downloaded checkpoint may link into the hub's cache.
        outside = [str(file) for file in files if file.parent != path]
        if outside:
            raise CheckpointError(
                f"{index} names {', '.join(outside)}, outside the checkpoint's folder; "
                "do not trust this checkpoint"
            )
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(f"{path} has no {', '.join(missing)}; copy the checkpoint again")
    return files


def _header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each tensor in the file."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            slices = {name: file.get_slice(name) for name in names}
            return {
                name: (tuple(each.get_shape()), str(each.get_dtype()))
                for name, each in slices.items()
            }
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(
            f"{path} is damaged or cut off ({exc}); copy or download the checkpoint again"
        ) from exc
