"""The embedding table of a bundle: mapped into memory, gathered on the host, never loaded whole."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mod_edge.config import ModelConfig
from mod_edge.errors import BackendError

# numpy has no bfloat16: the table holds its bits, which are only copied.
STORED_AS = {"bfloat16": "uint16"}


def read_embedding(path: Path, config: ModelConfig, dtype: str) -> npt.NDArray[Any]:
    """The embedding table (V, D) in `dtype`, or in what stands for it; read-only.

    Raises:
        BackendError: it cannot be read, or is not the config's.
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
