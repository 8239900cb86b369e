"""The embedding table of a bundle, written in chunks of rows."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mod_edge.bundle.manifest import EMBEDDING_FILE, EMBEDDING_SCALES_FILE
from mod_edge.config import EMBEDDING_WEIGHT
from mod_edge.export.stored_tensor import raw_array
from mod_edge.export.trace import require_range, rounded
from mod_edge.model.weight_codes import weight_codes
from mod_edge.plan.targets import Lowering
from mod_edge.plan.weight_forms import EMBEDDING_INT8

EMBEDDING_CHUNK_ROWS = 8192


def write_embedding(table: Tensor, lowering: Lowering, folder: Path) -> None:
    """Write the table in the lowering's dtype, or as int8 with a file of scales if quantized.

    Args:
        table: (V, D), as in the checkpoint.
        lowering: of the bundle.
        folder: of the bundle; `runtime.embedding.Embedding` reads it.

    Raises:
        ExportError: a value overflows the dtype.
    """
    chunks = table.split(EMBEDDING_CHUNK_ROWS)
    path = folder / EMBEDDING_FILE
    dtype: torch.dtype = getattr(torch, lowering.dtype)
    if not lowering.is_quantized:
        rows = (rounded(EMBEDDING_WEIGHT, chunk, dtype) for chunk in chunks)
        _write_npy(path, rows, tuple(table.shape), dtype)
        return
    scales: list[Tensor] = []

    def codes() -> Iterator[Tensor]:
        for chunk in chunks:
            require_range(EMBEDDING_WEIGHT, chunk, dtype)
            quantized = weight_codes(EMBEDDING_WEIGHT, chunk, EMBEDDING_INT8)
            scales.append(quantized.scales)
            yield quantized.codes

    _write_npy(path, codes(), tuple(table.shape), torch.int8)
    _write_npy(folder / EMBEDDING_SCALES_FILE, scales, (len(table), 1), torch.float32)


def _write_npy(
    path: Path, chunks: Iterable[Tensor], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Write an array that is given in chunks of rows; bfloat16, which numpy lacks, as uint16."""
    storage = raw_array(torch.empty(0, dtype=dtype)).dtype
    header = {"descr": storage.str, "fortran_order": False, "shape": shape}
    with path.open("wb") as file:  # a memory map would crash the process where the disk is full
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(raw_array(chunk)).data)
