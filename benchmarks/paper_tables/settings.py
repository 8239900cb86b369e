"""The training and evaluation settings, equal for all arms."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.paper_tables.arms import Run
from mod_edge.evaluation.thresholds import THRESHOLDS
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.training.recipe import Recipe, TrainConfig

UNCHOSEN = 0.0  # the threshold in the config before one is chosen


@dataclass(frozen=True)
class Settings:
    """Settings that all arms share.

    Attributes:
        text_config: fields that replace the base's.
        train: each run replaces `seed`.
        thresholds: of P(silent); each run takes the best one on `validation`.
        num_validation_clips: clips for choosing the threshold.
        num_test_clips: None takes all.
        tolerance_s: the largest time error of a right caption.
    """

    text_config: Mapping[str, Any]
    train: TrainConfig
    thresholds: tuple[float, ...]
    num_validation_clips: int
    num_test_clips: int | None
    tolerance_s: float

    def recipe(self, run: Run, base: Checkpoint) -> Recipe:
        """The recipe of one run."""
        text = replace(base.config.text_config, **self.text_config)
        stream = replace(base.config.stream_config, frame_token_interval_threshold=UNCHOSEN)
        model = replace(
            base.config,
            text_config=text,
            stream_config=stream,
            mod_config=run.arm.mod,
            dtype="float32",
        )
        return Recipe(base.path.resolve(), model, replace(self.train, seed=run.seed))

    def measuring(self) -> dict[str, Any]:
        """The settings of the evaluation as a JSON document."""
        names = ("thresholds", "num_validation_clips", "num_test_clips", "tolerance_s")
        return {name: value for name, value in asdict(self).items() if name in names}


STANDARD = Settings(
    # Six is the smallest number of layers with which all insertions differ and "deep" is more than
    # one layer.
    text_config={
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    train=TrainConfig(
        trainable=("connector", "model"),  # the head is the token table
        steps=800,
        batch_clips=8,
        max_frames=31,  # whole clips of 15 s, as in the evaluation
        roll_ratio=0.0,
        learning_rate=2e-3,
        dtype="bfloat16",
        save_every=200,
    ),
    thresholds=THRESHOLDS,
    num_validation_clips=30,
    num_test_clips=None,
    tolerance_s=1.0,
)
