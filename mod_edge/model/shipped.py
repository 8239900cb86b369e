"""The trained checkpoint bundled with mod-edge: a small model that narrates synthetic scenes.

Its folder, `narrator/`, contains the checkpoint, its training recipe and its model card.
"""

import shutil
from pathlib import Path

from mod_edge.bundle.manifest import CONFIG_FILE, TOKENIZER_FILE
from mod_edge.bundle.staging import staged_folder
from mod_edge.model.checkpoint import CHECKPOINT
from mod_edge.model.weight_files import WEIGHTS_FILE

NAME = "narrator"
CARD_FILE = "MODEL_CARD.md"
FOLDER = Path(__file__).resolve().parents[1] / NAME
FILES = (CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, CARD_FILE)


def copy_shipped(folder: Path, *, force: bool) -> int:
    """Copy the checkpoint to `folder`, whole or not at all; returns the bytes of weights.

    Raises:
        ConfigError: `folder` exists and `force` is not given, or it is not a checkpoint.
    """
    with staged_folder(folder, kind=CHECKPOINT, force=force) as staging:
        for name in FILES:
            shutil.copyfile(FOLDER / name, staging / name)
    return (FOLDER / WEIGHTS_FILE).stat().st_size
