"""`mod-edge eval`: a model over a data set, fed with the true dialogue and left to itself.

Beside the model stand baselines that never look at the video; and as controls, where they are asked
for, the model itself watching black frames, and the right frames in an order of chance.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mod_edge.config import StreamConfig
from mod_edge.data.clips import read_clips, split_file
from mod_edge.data.dialogue import dialogue_of_clip
from mod_edge.errors import ConfigError
from mod_edge.evaluation.baselines import majority_of
from mod_edge.evaluation.eval_model import EvalModel, open_model
from mod_edge.evaluation.eval_run import EvalRun, Row, Thresholds
from mod_edge.evaluation.transcript import Transcript
from mod_edge.progress import OnStep, not_shown

TRAIN_SPLIT = "train"
# The published measures take the likeliest token as it is; only the published demo has a threshold.
PUBLISHED_THRESHOLD = 0.0


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        model: the folder.
        backend: what computed it, and why that.
        data: the data set's folder.
        split: of the data set.
        num_clips: that were watched.
        num_frames: of all clips.
        fps: frames/s that the model sees.
        tolerance_s: how far off a right caption may be.
        thresholds: of the silent token's probability.
        baseline_from: the split that the baselines know.
        most_frequent: its most frequent caption.
        rows: the model, its controls, the baselines.
        transcripts: what the model, left to itself, said over each clip.
        warnings: what a user should know, one sentence each.
    """

    model: str
    backend: str
    data: str
    split: str
    num_clips: int
    num_frames: int
    fps: float
    tolerance_s: float
    thresholds: Thresholds
    baseline_from: str
    most_frequent: str
    rows: list[Row]
    transcripts: list[Transcript]
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """One JSON document; what is infinite or says nothing is null."""
        return asdict(self) | {"rows": [row.to_json() for row in self.rows]}


def evaluate(
    model: Path,
    data: Path,
    *,
    split: str = "test",
    max_clips: int | None = None,
    tolerance_s: float = 1.0,
    threshold: float | None = None,
    backend: str = "auto",
    device: str = "auto",
    profile: str | Path | None = None,
    controls: bool = False,
    on_step: OnStep = not_shown,
) -> Evaluation:
    """Measure a model over a data set.

    Args:
        model: folder of a checkpoint, which PyTorch computes in float32, or of a bundle.
        data: the data set's folder, see `data.clips`.
        split: of the data set.
        max_clips: take the first so many of its clips; all where None.
        tolerance_s: how far off a right caption may be.
        threshold: a probability of the silent token below it counts as zero; where None, nothing
            does when teacher-forced, and the checkpoint's own value holds when free-running.
        backend: see `open_model`.
        device: see `open_model`.
        profile: see `open_model`.
        controls: whether it watches black and shuffled frames too.
        on_step: told which clip begins, how many are done, and of how many.

    Raises:
        DataError: no such split, or a faulty one.
        SourceError: a video cannot be read.
        CheckpointError, BundleError: no model there, or a damaged one.
        ConfigError: a value that is not allowed, or a bundle whose window is too small.
        BackendError: it cannot run here.
    """
    _check(max_clips, tolerance_s, threshold)
    clips = read_clips(data, split)[:max_clips]
    opened = open_model(model, backend=backend, device=device, profile=profile)
    fps = opened.config.stream_config.frame_fps
    thresholds = _thresholds(opened.config.stream_config, threshold)
    baseline_from = TRAIN_SPLIT if split_file(data, TRAIN_SPLIT).is_file() else split
    majority = majority_of(
        dialogue_of_clip(clip, fps, clip.most_frames(fps))
        for clip in read_clips(data, baseline_from, needs_videos=False)
    )
    with EvalModel(opened, clips) as loaded:
        eval_run = EvalRun(loaded, thresholds, tolerance_s, controls=controls)
        for number, clip in enumerate(clips):
            on_step(f"clip {number + 1} of {len(clips)}", number, len(clips))
            eval_run.watch(clip)
        rows = eval_run.rows(majority)
        return Evaluation(
            model=str(model),
            backend=loaded.backend,
            data=str(data),
            split=split,
            num_clips=len(clips),
            num_frames=eval_run.num_frames,
            fps=fps,
            tolerance_s=tolerance_s,
            thresholds=thresholds,
            baseline_from=baseline_from,
            most_frequent=majority.caption,
            rows=rows,
            transcripts=eval_run.transcripts(),
            warnings=eval_run.warnings(rows),
        )


def _check(max_clips: int | None, tolerance_s: float, threshold: float | None) -> None:
    if max_clips is not None and max_clips < 1:
        raise ConfigError(f"max_clips={max_clips}, wanted at least 1")
    if not (math.isfinite(tolerance_s) and tolerance_s >= 0):
        raise ConfigError(f"tolerance={tolerance_s}, wanted a number of seconds, 0 or more")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"threshold={threshold}, wanted a probability, 0 to 1")


def _thresholds(stream: StreamConfig, threshold: float | None) -> Thresholds:
    if threshold is None:
        return Thresholds(PUBLISHED_THRESHOLD, stream.frame_token_interval_threshold)
    return Thresholds(threshold, threshold)
