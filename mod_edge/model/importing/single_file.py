"""One safetensors file that a user names: an adapter's, a connector's or routers' weights."""

import os
from pathlib import Path

from mod_edge.errors import CheckpointError, joined_faults
from mod_edge.model.checkpoint_folder import NUM_FAULTS_SHOWN
from mod_edge.model.weight_files import FLOAT_DTYPES, WeightFiles

PICKLE_SUFFIXES = (".bin", ".pt", ".pth")


def open_weight_file(path: Path) -> WeightFiles:
    """The checked header of the file at `path`; each tensor is read when it is requested.

    Raises:
        CheckpointError: no such file, damaged, unreadable, pickled by PyTorch, or tensors of other
            dtypes than `FLOAT_DTYPES`.
    """
    if path.suffix in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{path} is pickled and not read, because unpickling can run any code; convert it "
            'where you trust it: python -c "import torch; from safetensors.torch import save_file; '
            f"save_file(torch.load('{path}', weights_only=True, map_location='cpu'), "
            f"'{path.with_suffix('.safetensors')}')\""
        )
    if os.path.isdir(path):
        raise CheckpointError(f"{path} is a folder; give the safetensors file in it")
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise CheckpointError(f"{path} does not exist; check the path") from exc
    except (OSError, ValueError):
        pass  # `WeightFiles` says what is wrong
    weights = WeightFiles(path.parent, [path])
    others = [
        f"{name!r} is {stored}"
        for name, stored in weights.tensors.items()
        if stored.dtype not in FLOAT_DTYPES
    ]
    if others:
        raise CheckpointError(
            f"{path}: {joined_faults(others, NUM_FAULTS_SHOWN)}; wanted {', '.join(FLOAT_DTYPES)}: "
            "quantized weights are not read"
        )
    return weights
