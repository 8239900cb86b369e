"""The decision threshold of a trained checkpoint, chosen where it is not measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mod_edge.bundle.manifest import CONFIG_FILE, is_bundle
from mod_edge.config import read_config, write_config
from mod_edge.data.clips import Clip
from mod_edge.data.dialogue import Dialogue, dialogue_of_clip
from mod_edge.errors import ConfigError
from mod_edge.evaluation.clip_frames import read_clip_frames, seed_of
from mod_edge.evaluation.eval_model import EvalModel, open_model
from mod_edge.evaluation.free_running import Account, run_free, score
from mod_edge.progress import OnStep

SPLIT = "validation"
# 0 takes the likeliest token as it is, 0.725 is the published demo's. Up to 0.5 they hardly differ:
# with two likely tokens the one below 0.5 is not the likeliest anyway.
THRESHOLDS = (0.0, 0.6, 0.725, 0.85, 0.95)


@dataclass(frozen=True)
class Choice:
    """The best threshold, and F1 and moment F1 of each that was tried, in their order."""

    threshold: float
    f1: tuple[float, ...]
    moment_f1: tuple[float, ...]

    @property
    def is_arbitrary(self) -> bool:
        """Whether several were tried and none is better than another."""
        return len(self.f1) > 1 and len({*zip(self.f1, self.moment_f1, strict=True)}) == 1


def choose_threshold(
    checkpoint: Path,
    clips: Sequence[Clip],
    thresholds: Sequence[float],
    *,
    tolerance_s: float,
    on_step: OnStep,
) -> Choice:
    """The threshold with which the model, left to itself, has the highest F1.

    Of equals the one with the highest F1 of the moments (free wording seldom is right to the word),
    then the first.

    Raises:
        ConfigError: it is a bundle, whose manifest holds its config to what was exported.
        ModEdgeError: the checkpoint cannot be run, or a video cannot be read.
    """
    if is_bundle(checkpoint):
        raise ConfigError(
            f"{checkpoint} is a bundle; choose the threshold of its checkpoint, then export again"
        )
    opened = open_model(checkpoint, backend="auto", device="auto")
    fps = opened.config.stream_config.frame_fps
    accounts: list[list[tuple[Dialogue, Account]]] = [[] for _ in thresholds]
    with EvalModel(opened, clips) as model:
        for number, clip in enumerate(clips):
            on_step(f"threshold, clip {number + 1} of {len(clips)}", number, len(clips))
            frames = read_clip_frames(clip, opened.config)
            dialogue = dialogue_of_clip(clip, fps, len(frames.pixels))
            for threshold, watched in zip(thresholds, accounts, strict=True):
                account = run_free(model, dialogue, frames, threshold=threshold, seed=seed_of(clip))
                watched.append((dialogue, account))
    scores = [score(watched, fps, tolerance_s) for watched in accounts]
    f1 = tuple(each.f1 or 0.0 for each in scores)
    moment_f1 = tuple(each.moment_f1 or 0.0 for each in scores)
    best = max(range(len(thresholds)), key=lambda number: (f1[number], moment_f1[number]))
    return Choice(thresholds[best], f1, moment_f1)


def adopt_threshold(checkpoint: Path, threshold: float) -> None:
    """Make `threshold` the checkpoint's own."""
    config = read_config(checkpoint / CONFIG_FILE)
    stream = replace(config.stream_config, frame_token_interval_threshold=threshold)
    written = checkpoint / f"{CONFIG_FILE}.new"
    write_config(replace(config, stream_config=stream), written)
    written.replace(checkpoint / CONFIG_FILE)
