"""A LoRA adapter that peft wrote, merged into its base one tensor at a time.

W becomes W + s * B @ A, computed in float32 and rounded once to the base's dtype; s is alpha / rank
of the module. Tensors that the adapter has in full (`modules_to_save`, a resized embedding or head,
biases) replace the base's. VideoLLM-online's released adapter is one of these: LoRA on all linears
and the head, whose own weight it repeats as `lm_head.base_layer.weight`, and the connector in full.

Every tensor of the file is used, or it is a fault. The one exception are peft's copies of modules
from before the training (`original_module`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mod_edge.config import EMBEDDING_WEIGHT, TextConfig
from mod_edge.errors import CheckpointError, joined_faults
from mod_edge.model.checkpoint_folder import NUM_FAULTS_SHOWN
from mod_edge.model.importing.adapter_config import read_adapter_config
from mod_edge.model.importing.adapter_tensors import AdapterTensors, Factors
from mod_edge.model.importing.routers import Routers
from mod_edge.model.importing.single_file import open_weight_file
from mod_edge.model.weight_files import StoredTensor

ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_PICKLE_FILE = "adapter_model.bin"
BLOCK_NUMBERS = 2**23  # merged at once: 32 MiB in float32


class Adapter:
    """A checked, open adapter; each tensor is read when it is requested.

    A tied head that the adapter changes, as VideoLLM-online's training does, is no longer the
    embedding: `text` is then untied, and `merged` makes the head of the base's embedding.

    Attributes:
        path: of the folder.
        text: the decoder's config with the adapter: `vocab_size` and `tie_word_embeddings` may
            differ from the base's.
        saved: the tensors that replace the base's or are new, by our names: of the decoder and the
            connector, without routers.
    """

    def __init__(
        self, path: Path, base: Path, text: TextConfig, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        """Open and check the adapter's folder at `path`.

        Args:
            path: what peft's `save_pretrained` wrote.
            base: the base's folder, for messages.
            text: the base's config.
            shapes: of the base's decoder tensors by our names, without a tied head.

        Raises:
            CheckpointError: not an adapter, or files that are missing, damaged or pickled; or all
                tensors that do not fit the base or the config.
            ConfigError: the adapter is not plain LoRA.
        """
        self.path, self._base = path, base
        config = read_adapter_config(path)
        self._weights = open_weight_file(_weight_file(path))
        self._tensors = AdapterTensors(self._weights, config, text, shapes)
        if faults := self._tensors.faults:
            trained = f"trained on {config.base_name!r}" if config.base_name else "of unknown base"
            raise CheckpointError(
                f"{path} ({trained}) does not fit the base {base}: "
                f"{joined_faults(faults, NUM_FAULTS_SHOWN)}; give the base that it was trained on, "
                "or the whole adapter as peft's save_pretrained writes it"
            )
        self._weights.require_finite(self._tensors.used())
        self.text = replace(
            text,
            vocab_size=self._tensors.vocab_size,
            tie_word_embeddings=self._tensors.is_tied,
        )
        stored = self._weights.tensors
        self.saved: Mapping[str, StoredTensor] = {
            name: stored[their_name] for name, their_name in self._tensors.saved.items()
        }

    @property
    def has_routers(self) -> bool:
        """Whether the adapter has LayerExperts' tensors."""
        return bool(self._tensors.routers)

    def routers(self, layers: Sequence[int]) -> Routers:
        """The adapter's routers, which are those of the model's MoD `layers`.

        Raises:
            CheckpointError: they are not, or have other shapes.
        """
        return Routers(self._weights, self._tensors.routers, layers, self.text.hidden_size)

    def read(self, name: str) -> Tensor:
        """The tensor `name` of `saved`, in the file's dtype; not merged yet."""
        return self._weights.read(self._tensors.saved[name])

    def merged(self, name: str, tensor: Tensor) -> Tensor:
        """The model's tensor `name` from the base's, or from `read` where `saved` has it.

        Args:
            name: ours.
            tensor: in any dtype; of a head that the adapter unties, the base's embedding. It is
                overwritten block by block, so that the largest needs no second copy. A view of a
                mapped file may be given: the mapping is private, and the file stays as it is.

        Returns:
            `tensor`.

        Raises:
            CheckpointError: a sum of finite numbers is above what the tensor's dtype holds; what is
                not finite in the base stays so.
        """
        factors, rows = self._tensors.factors.get(name), self._tensors.rows.get(name)
        if factors is not None:
            self._add_product(name, tensor, factors)
        if rows is not None:
            trained = self._weights.read(rows.name).to(tensor.dtype)
            tensor.index_copy_(0, torch.tensor(rows.token_ids), trained)
        return tensor

    def _add_product(self, name: str, tensor: Tensor, factors: Factors) -> None:
        left, right = self._weights.read(factors.b), self._weights.read(factors.a)
        if name == EMBEDDING_WEIGHT:  # peft keeps the factors of the transposed embedding
            left, right = right.T, left.T
        right, scale = right.to(torch.float32), factors.scale
        num_rows = max(1, BLOCK_NUMBERS // tensor.shape[1])
        for start in range(0, len(tensor), num_rows):
            block, factor = (each[start : start + num_rows] for each in (tensor, left))
            sums = torch.addmm(
                block.to(torch.float32), factor.to(torch.float32), right, alpha=scale
            )
            block.copy_(sums)
            if _is_finite(sums) and not _is_finite(block):
                raise CheckpointError(
                    f"{name!r} of {self._base} with {self.path} has numbers above the largest of "
                    f"{tensor.dtype}; use a base in bfloat16 or float32"
                )


def _is_finite(tensor: Tensor) -> bool:
    """Ten times as fast as `isfinite().all()`; NaN is both the least and the largest number."""
    return bool(torch.stack(tensor.aminmax()).isfinite().all())


def _weight_file(folder: Path) -> Path:
    """The adapter's weight file: the pickled one only if there is no other, to be refused."""
    file, pickled = folder / ADAPTER_WEIGHTS_FILE, folder / ADAPTER_PICKLE_FILE
    return pickled if pickled.exists() and not file.exists() else file
