"""The embedding table of a bundle: memory-mapped and gathered on the host, never loaded whole."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mod_edge.config import ModelConfig
from mod_edge.errors import BackendError

# numpy has no bfloat16: the table stores the bits as uint16, and they are only copied.
STORED_AS = {"bfloat16": "uint16"}


def read_embedding(path: Path, config: ModelConfig, dtype: str) -> npt.NDArray[Any]:
    """The embedding table (V, D) in `dtype`, bfloat16 as uint16; read-only.

    Raises:
        BackendError: the file cannot be read, or its shape or dtype does not match the config.
    """
    wanted = (config.text_config.vocab_size, config.text_config.hidden_size)
    stored = STORED_AS.get(dtype, dtype)
    try:
        table: npt.NDArray[Any] = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as exc:
        raise BackendError(f"{path} cannot be read: {exc}; export the checkpoint again") from exc
    if table.shape != wanted or table.dtype != stored:
        raise BackendError(
            f"{path} holds {table.dtype} {table.shape}, the bundle's config.json wants {stored} "
            f"{wanted}; export the checkpoint again"
        )
    return table
