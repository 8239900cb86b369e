"""The config of a checkpoint or preset, for `mod-edge inspect`."""

from pathlib import Path

from mod_edge.config import ModelConfig
from mod_edge.errors import CheckpointError
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.checkpoint_folder import download_advice
from mod_edge.model.presets import GEOMETRIES, preset_config


def config_of(target: str) -> ModelConfig:
    """The config of a preset's name or of a checkpoint folder, which is checked.

    Raises:
        CheckpointError: neither a preset nor a readable folder, both, or a damaged checkpoint.
    """
    path = Path(target)
    if target in GEOMETRIES:
        if path.exists():
            raise CheckpointError(
                f"{target} is a preset, and there is a folder of that name; for the folder give "
                f"./{target}, for the preset use another working folder"
            )
        return preset_config(target)
    if not path.exists():
        advice = download_advice(path) or f"presets are {', '.join(GEOMETRIES)}"
        raise CheckpointError(f"{path} is neither a folder nor a preset; {advice}")
    checkpoint = Checkpoint(path)
    checkpoint.require_finite()
    return checkpoint.config
