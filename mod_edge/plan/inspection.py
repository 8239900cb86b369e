"""Shape and cost of a model, for `mod-edge inspect`; needs its config alone."""

from dataclasses import asdict, dataclass
from typing import Any

from mod_edge.config import ModelConfig
from mod_edge.plan.costs import Comparison, compare_with_full, num_parameters, vision_flops


@dataclass(frozen=True)
class Inspection:
    """A model's shape and cost; `with_interval` is None if the model has no interval token."""

    name: str
    config: ModelConfig
    parameters: dict[str, int]
    num_frames: int
    with_interval: Comparison | None
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
                "with_interval": self.with_interval and _comparison_to_json(self.with_interval),
                "frames_only": _comparison_to_json(self.frames_only),
            },
            "vision_flops": self.vision_flops,
        }


def inspection_of(name: str, config: ModelConfig, num_frames: int) -> Inspection:
    """The inspection of a model of that config, its costs averaged over `num_frames`."""
    return Inspection(
        name=name,
        config=config,
        parameters=num_parameters(config),
        num_frames=num_frames,
        with_interval=(
            compare_with_full(config, num_frames, has_interval=True)
            if config.stream_config.interval_ids
            else None
        ),
        frames_only=compare_with_full(config, num_frames, has_interval=False),
        vision_flops=vision_flops(config),
    )


def _comparison_to_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "model": asdict(comparison.model),
        "full": asdict(comparison.full),
        "flops_ratio": round(comparison.flops_ratio, 4),
        "kv_ratio": round(comparison.kv_ratio, 4),
    }
