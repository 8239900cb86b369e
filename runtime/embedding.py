"""The embedding table of a bundle: memory-mapped and gathered on the host, never loaded whole."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mod_edge.bundle.manifest import EMBEDDING_FILE, EMBEDDING_SCALES_FILE
from mod_edge.config import ModelConfig
from mod_edge.errors import BackendError
from mod_edge.plan.targets import Lowering

Array = npt.NDArray[Any]

# numpy has no bfloat16: a table of such stores the bits as uint16, and they are only copied.
STORED_AS = {"bfloat16": "uint16"}


class Embedding:
    """The table (V, D) in a lowering's dtype, or as int8 with a scale per row if quantized."""

    def __init__(self, folder: Path, config: ModelConfig, lowering: Lowering) -> None:
        """Map the table of the bundle at `folder`.

        Raises:
            BackendError: a file cannot be read, or its shape or dtype does not match the config.
        """
        text = config.text_config
        self.dtype = np.dtype(STORED_AS.get(lowering.dtype, lowering.dtype))
        self._is_bfloat16 = lowering.dtype == "bfloat16"
        stored = np.dtype(np.int8) if lowering.is_quantized else self.dtype
        self._table = _mapped(folder / EMBEDDING_FILE, (text.vocab_size, text.hidden_size), stored)
        self._scales = (
            _mapped(folder / EMBEDDING_SCALES_FILE, (text.vocab_size, 1), np.dtype(np.float32))
            if lowering.is_quantized
            else None
        )

    def rows(self, token_ids: Sequence[int]) -> Array:
        """A copy of the rows (X, D) of these tokens, bfloat16 as uint16 bits."""
        rows: Array = self._table[list(token_ids)]
        if self._scales is None:
            return rows
        values = rows * self._scales[list(token_ids)]
        return _bfloat16_bits(values) if self._is_bfloat16 else values.astype(self.dtype)


def _mapped(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    try:
        table: Array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as exc:
        raise BackendError(f"{path} cannot be read: {exc}; export the checkpoint again") from exc
    if table.shape != shape or table.dtype != dtype:
        raise BackendError(
            f"{path} holds {table.dtype} {table.shape}, the bundle's config.json wants {dtype} "
            f"{shape}; export the checkpoint again"
        )
    return table


def _bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Finite float32 `values` rounded to the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
