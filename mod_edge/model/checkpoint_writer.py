"""Writes a checkpoint folder: config, tokenizer and weights, with one tensor in memory at a time.

Weights go into one safetensors file, or into shards with Hugging Face's index if they are large.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mod_edge.bundle.manifest import CONFIG_FILE, TOKENIZER_FILE
from mod_edge.config import ModelConfig, write_config
from mod_edge.model.checkpoint import tensor_shapes
from mod_edge.model.weight_files import INDEX_FILE, WEIGHTS_FILE

SHARD_BYTES = 2 * 10**9
DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
CONFIGS_DTYPE: Mapping[str, torch.dtype] = MappingProxyType({})  # for all tensors


@dataclass(frozen=True)
class _Layout:
    """Shape and dtype of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_checkpoint(
    folder: Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    tensor_of: Callable[[str], Tensor],
    *,
    dtypes: Mapping[str, torch.dtype] = CONFIGS_DTYPE,
    on_bytes: Callable[[int], None] = lambda _size_bytes: None,
) -> None:
    """Write a checkpoint into `folder`, its weights in the config's dtype or in their own.

    Args:
        folder: exists and is empty.
        config: of the model.
        tokenizer: must encode the config's protocol strings as the config says.
        tensor_of: returns the tensor of a name, in any dtype and on any device; called once for
            each name in `tensor_shapes`.
        dtypes: of the tensors that are not written in the config's dtype, by name.
        on_bytes: called with the size of every tensor as it is written.
    """
    write_config(config, folder / CONFIG_FILE)
    # Not `tokenizer.save`, which takes UTF-8 paths only and raises a bare Exception on a full disk.
    (folder / TOKENIZER_FILE).write_text(tokenizer.to_str(), encoding="utf-8")
    dtype: torch.dtype = getattr(torch, config.dtype)
    layouts = {
        name: _Layout(shape, dtypes.get(name, dtype))
        for name, shape in tensor_shapes(config).items()
    }
    shards = _shards({name: layout.size_bytes for name, layout in layouts.items()})
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = WEIGHTS_FILE
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map.update(dict.fromkeys(names, file))
        # Wide dtypes first, as the library writes them: it cannot read unaligned tensors.
        names.sort(key=lambda name: -layouts[name].dtype.itemsize)
        tensors = (tensor_of(name).to("cpu", layouts[name].dtype) for name in names)
        shard = {name: layouts[name] for name in names}
        _write_safetensors(folder / file, shard, tensors, on_bytes)
    if len(shards) > 1:
        total_bytes = sum(layout.size_bytes for layout in layouts.values())
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _shards(sizes: Mapping[str, int]) -> list[list[str]]:
    """Names of tensors, given with their bytes, in files of at most `SHARD_BYTES`.

    A file is larger if one tensor alone is.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name, nbytes in sizes.items():
        if shards[-1] and size + nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    return shards


def _write_safetensors(
    path: Path,
    layouts: Mapping[str, _Layout],
    tensors: Iterable[Tensor],
    on_bytes: Callable[[int], None],
) -> None:
    """Write a safetensors file tensor by tensor; the library's writer needs all in memory.

    The format: eight bytes of header length, a JSON header, the data (safetensors' README).
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, layout in layouts.items():
        end = offset + layout.size_bytes
        header[name] = {
            "dtype": DTYPE_NAMES[layout.dtype],
            "shape": layout.shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the data
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for (name, layout), tensor in zip(layouts.items(), tensors, strict=True):
            shape = layout.shape
            assert tensor.shape == shape, f"{name} is {list(tensor.shape)}, wanted {list(shape)}"
            data = tensor.contiguous().view(torch.uint8).numpy()
            file.write(data.data)  # `tofile` silently truncates where the disk is full
            on_bytes(data.nbytes)
