"""A checkpoint folder: config.json, tokenizer.json and safetensors under Hugging Face's names.

Tensors are `vision_model.*` (SigLIP), `connector.0|2.*`, `model.*` and `lm_head.weight` (Llama,
Qwen2 or Qwen3) and `model.layers.N.router.*` (LayerExpert). Names and shapes are checked from the
files' headers, all faults at once; only a tied head's weights are read for it.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from mod_edge.bundle.manifest import CONFIG_FILE, MANIFEST_FILE, TOKENIZER_FILE, file_sha256
from mod_edge.bundle.staging import FolderKind
from mod_edge.config import EMBEDDING_WEIGHT, HEAD_WEIGHT, ModelConfig, read_config
from mod_edge.errors import BundleError, ConfigError
from mod_edge.model.checkpoint_folder import (
    read_checkpoint_config,
    require_files,
    unreadable,
)
from mod_edge.model.tensor_fit import misfits, raise_misfits
from mod_edge.model.video_llm import VideoLLM
from mod_edge.model.vision import POOLING_HEAD
from mod_edge.model.weight_files import FLOAT_DTYPES, WeightFiles, tied_head_fault
from mod_edge.plan.tokenizer import read_tokenizer


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
        self.config = read_checkpoint_config(path)
        require_files(path, [path / TOKENIZER_FILE])
        self.tokenizer = read_tokenizer(path / TOKENIZER_FILE, self.config)
        self._shapes = tensor_shapes(self.config)
        self._weights = WeightFiles(path)
        self._check_tensors()

    def tensor(self, name: str) -> Tensor:
        """The weight called `name`, in the file's dtype; a tied head is the embedding."""
        if name == HEAD_WEIGHT:
            name = self.config.text_config.head_weight
        return self._weights.read(name)

    def tensors(self, *prefixes: str) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor of all weights whose name starts with one of `prefixes`, one at a time.

        A tied head is included under its own name, `HEAD_WEIGHT`.
        """
        for name in dict.fromkeys((*self._shapes, HEAD_WEIGHT)):
            if name.startswith(prefixes):
                yield name, self.tensor(name)

    def require_finite(self) -> None:
        """Read the model's weights once and check that each is a number, with little memory.

        Raises:
            CheckpointError: names every tensor with NaN or infinite weights.
        """
        self._weights.require_finite(self._shapes)

    def load_model(self) -> VideoLLM:
        """The reference model in float32, whole in memory.

        Raises:
            CheckpointError: some weights are NaN or infinite.
        """
        self.require_finite()
        with torch.device("meta"):
            model = VideoLLM(self.config)
        model.load_weights({name: self.tensor(name).to(torch.float32) for name in self._shapes})
        return model.eval().requires_grad_(False)

    def fingerprint(self) -> str:
        """sha256 over config, tokenizer and weights: the same for equal checkpoints."""
        digest = hashlib.sha256()
        for file in (self.path / CONFIG_FILE, self.path / TOKENIZER_FILE, *self._weights.files):
            try:
                digest.update(file_sha256(file).encode())
            except OSError as exc:
                raise unreadable(file, exc) from exc
        return digest.hexdigest()

    def _check_tensors(self) -> None:
        """Check names, shapes and dtypes; whether a tied head is the embedding needs the data."""
        tensors = self._weights.tensors
        if not self.config.frame_token_cls:  # SigLIP's files have it, whether it is used or not
            tensors = {
                name: each for name, each in tensors.items() if not name.startswith(POOLING_HEAD)
            }
        faults = [f"no tensor {name!r}" for name in self._shapes.keys() - tensors.keys()]
        faults += [
            f"{name!r} is {stored}, wanted one of {', '.join(FLOAT_DTYPES)}"
            for name, stored in tensors.items()
            if stored.dtype not in FLOAT_DTYPES
        ]
        is_tied = self.config.text_config.head_weight == EMBEDDING_WEIGHT
        if is_tied and (fault := tied_head_fault(tensors)):
            faults.append(fault)
        faults += misfits(tensors, self._shapes, lambda name: is_tied and name == HEAD_WEIGHT)
        raise_misfits(self.path, faults, advice="fix config.json or write the checkpoint again")


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
