"""Shape and cost of a checkpoint, bundle or preset, for `mod-edge inspect`."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mod_edge.bundle.manifest import CONFIG_FILE, MANIFEST_FILE
from mod_edge.config import ModelConfig, read_config
from mod_edge.errors import CheckpointError
from mod_edge.model.checkpoint import Checkpoint, tensor_shapes
from mod_edge.model.presets import GEOMETRIES, preset_config
from mod_edge.plan.costs import Comparison, compare_with_full, vision_flops


@dataclass(frozen=True)
class Inspection:
    """A model's shape and cost."""

    name: str
    config: ModelConfig
    parameters: dict[str, int]
    num_frames: int
    with_interval: Comparison
    frames_only: Comparison
    vision_flops: float

    def to_json(self) -> dict[str, Any]:
        """One JSON-able document; FLOPs and bytes are means per frame over `num_frames`."""
        config = self.config
        return {
            "name": self.name,
            "num_hidden_layers": config.text_config.num_hidden_layers,
            "mod_layers": list(config.mod_layers),
            "mod_config": asdict(config.mod_config) if config.mod_config else None,
            "frame_num_tokens": config.frame_num_tokens,
            "num_kept": config.num_kept,
            "parameters": self.parameters,
            "num_frames": self.num_frames,
            "decoder": {
                "with_interval": _comparison_to_json(self.with_interval),
                "frames_only": _comparison_to_json(self.frames_only),
            },
            "vision_flops": self.vision_flops,
        }


def inspect(target: str, num_frames: int) -> Inspection:
    """The inspection of a preset's name, a checkpoint folder (checked) or a bundle folder.

    Raises:
        CheckpointError: neither a preset nor a readable folder, or a damaged checkpoint.
        BundleError: a damaged bundle.
    """
    is_preset = target in GEOMETRIES
    config = preset_config(target) if is_preset else _config_of_folder(Path(target))
    return Inspection(
        name=target,
        config=config,
        parameters=_parameters(config),
        num_frames=num_frames,
        with_interval=compare_with_full(config, num_frames, has_interval=True),
        frames_only=compare_with_full(config, num_frames, has_interval=False),
        vision_flops=vision_flops(config),
    )


def _config_of_folder(path: Path) -> ModelConfig:
    if not path.exists():
        raise CheckpointError(
            f"{path} is neither a folder nor a preset; presets are {', '.join(GEOMETRIES)}"
        )
    if (path / MANIFEST_FILE).is_file():
        return read_config(path / CONFIG_FILE)
    return Checkpoint(path).config


def _parameters(config: ModelConfig) -> dict[str, int]:
    """Number of weights by part; a tied head is counted once, as embedding."""
    parts = {
        "vision": "vision_model.",
        "connector": "connector.",
        "embedding": "model.embed_tokens.",
        "decoder": "model.",
        "head": "lm_head.",
    }
    counts = dict.fromkeys(parts, 0)
    for name, shape in tensor_shapes(config).items():
        part = next(part for part, prefix in parts.items() if name.startswith(prefix))
        counts[part] += math.prod(shape)
    return counts | {"total": sum(counts.values())}


def _comparison_to_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "model": asdict(comparison.model),
        "full": asdict(comparison.full),
        "flops_ratio": round(comparison.flops_ratio, 4),
        "kv_ratio": round(comparison.kv_ratio, 4),
    }
