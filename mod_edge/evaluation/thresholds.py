"""Chooses a trained checkpoint's decision threshold, on clips that it is not evaluated on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mod_edge.bundle.manifest import CONFIG_FILE, is_bundle
from mod_edge.bundle.staging import write_whole
from mod_edge.config import config_text, read_config
from mod_edge.data.clips import Clip
from mod_edge.data.dialogue import Dialogue, dialogue_of_clip
from mod_edge.errors import ConfigError
from mod_edge.evaluation.clip_frames import read_clip_frames, seed_of
from mod_edge.evaluation.eval_model import EvalModel, open_model
from mod_edge.evaluation.free_running import Account, check_tolerance, run_free, score
from mod_edge.progress import OnStep

SPLIT = "validation"
# 0 uses the likeliest token, 0.725 is the published demo's. Values up to 0.5 hardly differ: of two
# likely tokens, one with a probability below 0.5 is not the likeliest anyway.
THRESHOLDS = (0.0, 0.6, 0.725, 0.85, 0.95)


@dataclass(frozen=True)
class Choice:
    """The best threshold, with F1 and moment F1 of each candidate in order."""

    threshold: float
    f1: tuple[float, ...]
    moment_f1: tuple[float, ...]

    @property
    def is_arbitrary(self) -> bool:
        """Whether there were several candidates and all score the same."""
        return len(self.f1) > 1 and len({*zip(self.f1, self.moment_f1, strict=True)}) == 1


def choose_threshold(
    checkpoint: Path,
    clips: Sequence[Clip],
    thresholds: Sequence[float],
    *,
    tolerance_s: float,
    on_step: OnStep,
) -> Choice:
    """The threshold with the highest free-running F1.

    Ties are broken by the moment F1 (free wording rarely matches exactly), then by order.

    Raises:
        ConfigError: `checkpoint` is a bundle, whose config must stay as exported.
        ModEdgeError: the checkpoint cannot be run, or a video cannot be read.
    """
    check_tolerance(tolerance_s)
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
            for threshold, clips_so_far in zip(thresholds, accounts, strict=True):
                account = run_free(model, dialogue, frames, threshold=threshold, seed=seed_of(clip))
                clips_so_far.append((dialogue, account))
    scores = [score(each, fps, tolerance_s) for each in accounts]
    f1 = tuple(each.f1 or 0.0 for each in scores)
    moment_f1 = tuple(each.moment_f1 or 0.0 for each in scores)
    best = max(range(len(thresholds)), key=lambda number: (f1[number], moment_f1[number]))
    return Choice(thresholds[best], f1, moment_f1)


def adopt_threshold(checkpoint: Path, threshold: float) -> None:
    """Write `threshold` into the checkpoint's config."""
    config = read_config(checkpoint / CONFIG_FILE)
    stream = replace(config.stream_config, frame_token_interval_threshold=threshold)
    text = config_text(replace(config, stream_config=stream))
    write_whole(checkpoint / CONFIG_FILE, text.encode())
