"""`mod-edge eval`: evaluates a model on a data set, teacher-forced and free-running.

The results include baselines that ignore the video. Optional controls run the model on black
frames, and on the right frames in random order.
"""

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
from mod_edge.evaluation.free_running import check_tolerance
from mod_edge.evaluation.transcript import Transcript
from mod_edge.plan.untrained import untrained_warnings
from mod_edge.progress import OnStep, not_shown

TRAIN_SPLIT = "train"
# The published measures use the likeliest token; only the published demo has a threshold.
PUBLISHED_THRESHOLD = 0.0


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        model: the model's folder.
        backend: the backend and the reason for it.
        data: the data set's folder.
        split: of the data set.
        num_clips: evaluated clips.
        num_frames: frames of all clips.
        fps: frames/s of the model.
        tolerance_s: the largest time error of a right caption.
        thresholds: of P(silent).
        baseline_from: the split that the baselines' captions and answers come from.
        most_frequent: its most frequent caption.
        rows: the model, its controls, the baselines.
        transcripts: what the model, free-running, said over each clip.
        warnings: one sentence each.
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
        """One JSON document; infinite and missing values are null."""
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
    """Evaluate a model on a data set.

    Args:
        model: folder of a checkpoint, which PyTorch runs in float32, or of a bundle.
        data: the data set's folder, see `data.clips`.
        split: of the data set.
        max_clips: evaluate only the first N clips; None evaluates all.
        tolerance_s: the largest time error of a right caption.
        threshold: the model speaks when P(silent) is below it; None uses 0 teacher-forced and the
            checkpoint's own threshold free-running.
        backend: see `open_model`.
        device: see `open_model`.
        profile: see `open_model`.
        controls: whether to run the model on black and shuffled frames too.
        on_step: progress callback.

    Raises:
        DataError: the split is missing or has faults.
        SourceError: a video cannot be read.
        CheckpointError, BundleError: the model is missing or damaged.
        ConfigError: an argument is out of range, or the bundle's window is too small.
        BackendError: the model cannot run here.
    """
    _check(max_clips, tolerance_s, threshold)
    clips = read_clips(data, split)[:max_clips]
    baseline_from = TRAIN_SPLIT if split_file(data, TRAIN_SPLIT).is_file() else split
    baseline_clips = read_clips(data, baseline_from, needs_videos=False)
    opened = open_model(model, backend=backend, device=device, profile=profile)
    fps = opened.config.stream_config.frame_fps
    thresholds = _thresholds(opened.config.stream_config, threshold)
    majority = majority_of(
        dialogue_of_clip(clip, fps, clip.most_frames(fps)) for clip in baseline_clips
    )
    with EvalModel(opened, clips) as loaded:
        eval_run = EvalRun(loaded, thresholds, tolerance_s, controls=controls)
        for number, clip in enumerate(clips):
            on_step(f"clip {number + 1} of {len(clips)}", number, len(clips))
            eval_run.evaluate_clip(clip)
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
            warnings=[*untrained_warnings(opened.config), *eval_run.warnings(rows)],
        )


def _check(max_clips: int | None, tolerance_s: float, threshold: float | None) -> None:
    if max_clips is not None and max_clips < 1:
        raise ConfigError(f"max_clips={max_clips}, wanted at least 1")
    check_tolerance(tolerance_s)
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"threshold={threshold}, wanted a probability, 0 to 1")


def _thresholds(stream: StreamConfig, threshold: float | None) -> Thresholds:
    if threshold is None:
        return Thresholds(PUBLISHED_THRESHOLD, stream.frame_token_interval_threshold)
    return Thresholds(threshold, threshold)
