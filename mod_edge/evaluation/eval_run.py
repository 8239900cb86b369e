"""Runs the model, its controls and the baselines over the clips, and collects their measures."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mod_edge.data.clips import Clip
from mod_edge.data.dialogue import Dialogue, dialogue_of_clip
from mod_edge.data.stream_metrics import TurnOutcome
from mod_edge.evaluation.baselines import BASELINES, MajorityBaseline
from mod_edge.evaluation.clip_frames import read_clip_frames, seed_of
from mod_edge.evaluation.eval_model import EvalModel
from mod_edge.evaluation.free_running import (
    FreeRunning,
    ScoredClip,
    run_free,
    score,
    score_clip,
    total,
)
from mod_edge.evaluation.teacher_forcing import (
    TeacherForced,
    summarize,
    teacher_forced,
    time_diff_s,
)
from mod_edge.evaluation.transcript import Transcript, transcript_of
from mod_edge.runtime.loaded_model import UInt8Array

View = Callable[[UInt8Array, int], UInt8Array]

MODEL_VIEW: Mapping[str, View] = {"model": lambda pixels, _seed: pixels}
CONTROL_VIEWS: Mapping[str, View] = {
    "black video": lambda pixels, _seed: np.zeros_like(pixels),
    "shuffled frames": lambda pixels, seed: np.random.default_rng(seed).permutation(pixels),
}


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of P(silent) for both ways of running the model; see `Protocol`."""

    teacher_forced: float
    free_running: float


@dataclass(frozen=True)
class Row:
    """The measures of the model, a control or a baseline.

    Teacher-forced, a baseline has only TimeDiff.
    """

    name: str
    teacher_forced: TeacherForced
    free_running: FreeRunning

    def to_json(self) -> dict[str, Any]:
        """Both parts; infinite and missing values are null."""
        forced, free = self.teacher_forced, self.free_running
        ratios = {name: getattr(free, name) for name in ("precision", "recall", "f1", "moment_f1")}
        return {
            "name": self.name,
            "teacher_forced": {
                name: None if value is None or not math.isfinite(value) else value
                for name, value in asdict(forced).items()
            },
            "free_running": asdict(free) | ratios,
        }


class EvalRun:
    """The results so far.

    Attributes:
        num_frames: of all clips so far.
    """

    def __init__(
        self, model: EvalModel, thresholds: Thresholds, tolerance_s: float, *, controls: bool
    ) -> None:
        self.num_frames = 0
        self._tolerance_s = tolerance_s
        self._model = model
        self._fps = model.config.stream_config.frame_fps
        self._thresholds = thresholds
        self._views = {**MODEL_VIEW, **(CONTROL_VIEWS if controls else {})}
        self._names: list[str] = []
        self._dialogues: list[Dialogue] = []
        self._outcomes: dict[str, list[list[TurnOutcome]]] = {name: [] for name in self._views}
        self._clips: dict[str, list[ScoredClip]] = {name: [] for name in self._views}
        self._video_warnings: list[str] = []
        self._num_short_clips = 0

    def evaluate_clip(self, clip: Clip) -> None:
        """Run the model over one more clip, in every view.

        Raises:
            SourceError: its video cannot be read.
        """
        frames, seed = read_clip_frames(clip, self._model.config), seed_of(clip)
        dialogue = dialogue_of_clip(clip, self._fps, len(frames.pixels))
        for name, view in self._views.items():
            seen = frames.with_pixels(view(frames.pixels, seed))
            outcomes = teacher_forced(
                self._model,
                dialogue,
                seen.pixels,
                threshold=self._thresholds.teacher_forced,
                seed=seed,
            )
            threshold = self._thresholds.free_running
            account = run_free(self._model, dialogue, seen, threshold=threshold, seed=seed)
            self._outcomes[name].append(outcomes)
            self._clips[name].append(score_clip(dialogue, account, self._fps, self._tolerance_s))
        self._names.append(clip.uid)
        self._dialogues.append(dialogue)
        self._video_warnings += frames.warnings
        self._num_short_clips += clip.ends_too_soon(dialogue.num_frames, self._fps)
        self.num_frames += dialogue.num_frames

    def rows(self, majority: MajorityBaseline) -> list[Row]:
        """The model, its controls and the baselines, over the clips so far."""
        return [*self._model_rows(), *self._baseline_rows(majority)]

    def transcripts(self) -> list[Transcript]:
        """What the model said over each clip so far, and what was due."""
        return [
            transcript_of(name, clip, self._fps, self._tolerance_s)
            for name, clip in zip(self._names, self._clips["model"], strict=True)
        ]

    def warnings(self, rows: Sequence[Row]) -> list[str]:
        """Warnings about the videos, how the model runs and its window, for the user."""
        rolls = {row.name: row.free_running.num_rolls for row in rows}
        short = []
        if self._num_short_clips:
            short.append(
                f"{self._num_short_clips} of {len(self._names)} videos end before their lines' "
                "duration; captions due after that are not counted"
            )
        return [
            *self._video_warnings,
            *short,
            *self._model.warnings,
            *(
                f"{name}: the replies filled the window, which rolled {count} times in total"
                for name, count in rolls.items()
                if count
            ),
        ]

    def _model_rows(self) -> Iterator[Row]:
        for name, clips in self._clips.items():
            yield Row(name, summarize(self._outcomes[name], self._fps), total(clips))

    def _baseline_rows(self, majority: MajorityBaseline) -> Iterator[Row]:
        for baseline in BASELINES:
            clips = [
                (each, baseline.account(each, majority, self._fps)) for each in self._dialogues
            ]
            differences = [baseline.frame_diffs(each) for each in self._dialogues]
            forced = TeacherForced(time_diff_s=time_diff_s(differences, self._fps))
            yield Row(baseline.name, forced, score(clips, self._fps, self._tolerance_s))
