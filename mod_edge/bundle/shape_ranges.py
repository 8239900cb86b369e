"""Ranges of every dynamic dim for TensorRT: which steps an engine takes, and which it is tuned for.

A layer's engine has up to three optimization profiles, because the best kernels for a single token
and for a prefill differ: `one-frame` (steps of a live stream), `many-frames` (of a file, if more
than one is allowed) and `text` (decode and prefill). Ranges are computed per dim of `signature`, so
no input can lack one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mod_edge.config import ModelConfig
from mod_edge.errors import ConfigError
from mod_edge.plan.graph_kind import DENSE, HEAD, MOD, REBASE, VISION, GraphKind
from mod_edge.plan.kv_budget import rows_of_frames
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.signature import GraphSignature
from mod_edge.profiles import Profile

ONE_FRAME, MANY_FRAMES, TEXT, ANY = "one-frame", "many-frames", "text", "any"
TUNED_SINK_ROWS = 128  # system prompt, first frame and standing instruction


@dataclass(frozen=True)
class ShapeRange:
    """One input's shapes in an optimization profile: from `min` to `max`, tuned for `opt`."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        ranks = {len(self.min), len(self.opt), len(self.max)}
        if len(ranks) > 1:
            raise ConfigError(f"min, opt, max differ in rank: {self.min}, {self.opt}, {self.max}")
        if not all(a <= b <= c for a, b, c in zip(self.min, self.opt, self.max, strict=True)):
            raise ConfigError(f"need min <= opt <= max: {self.min}, {self.opt}, {self.max}")


@dataclass(frozen=True)
class StepLimits:
    """The largest steps that an engine takes.

    Attributes:
        max_step_tokens: largest T.
        opt_frames: F that `many-frames` and the vision graph are tuned for.
        max_frames: largest F, of a step and of the vision graph.
        capacity: rows of the cache: largest S, and bound of a step's T and R.
    """

    max_step_tokens: int
    opt_frames: int
    max_frames: int
    capacity: Rows

    def __post_init__(self) -> None:
        if not 1 <= self.opt_frames <= self.max_frames:
            raise ConfigError(
                f"opt_frames={self.opt_frames}, max_frames={self.max_frames}: "
                "wanted 1 <= opt_frames <= max_frames"
            )
        for name, value in (
            ("max_step_tokens", self.max_step_tokens),
            ("capacity.dense", self.capacity.dense),
            ("capacity.mod", self.capacity.mod),
        ):
            if value < 1:
                raise ConfigError(f"{name}={value}, wanted at least 1")


def step_limits(profile: Profile, capacity: Rows) -> StepLimits:
    """The limits of `profile` with a cache of `capacity` rows."""
    frames = profile.frames_per_step
    return StepLimits(profile.max_step_tokens, frames.opt, frames.max, capacity)


def profile_for(num_frames: int) -> str:
    """The optimization profile of a layer's engine for a step with this many frames."""
    return {0: TEXT, 1: ONE_FRAME}.get(num_frames, MANY_FRAMES)


OptimizationProfiles = dict[str, dict[str, ShapeRange]]  # by profile and input


def optimization_profiles(
    signature: GraphSignature, config: ModelConfig, limits: StepLimits
) -> OptimizationProfiles:
    """The shape ranges of every input of `signature`, by profile; the first is the default.

    Raises:
        ConfigError: a step of `limits.max_frames` does not fit in `limits.max_step_tokens` or
            in the cache.
    """
    return {
        name: {
            spec.name: ShapeRange(
                *(
                    tuple(dim if isinstance(dim, int) else ranges[dim][place] for dim in spec.dims)
                    for place in range(3)
                )
            )
            for spec in signature.inputs
        }
        for name, ranges in DIM_RANGES[signature.kind](config, limits).items()
    }


DimRanges = dict[str, tuple[int, int, int]]  # (min, opt, max) by dynamic dim


def _vision_ranges(_config: ModelConfig, limits: StepLimits) -> dict[str, DimRanges]:
    return {ANY: {"F": (1, limits.opt_frames, limits.max_frames)}}


def _head_ranges(_config: ModelConfig, limits: StepLimits) -> dict[str, DimRanges]:
    """Rows are each frame's last token, or the last token of a text."""
    return {ANY: {"T": (1, 1, limits.max_frames)}}


def _rebase_ranges(config: ModelConfig, limits: StepLimits) -> dict[str, DimRanges]:
    heads, rows = config.text_config.num_key_value_heads, limits.capacity.dense
    return {ANY: {"B": (heads, heads * min(TUNED_SINK_ROWS, rows), heads * rows)}}


def _layer_ranges(kind: GraphKind, config: ModelConfig, limits: StepLimits) -> dict[str, DimRanges]:
    capacity = limits.capacity.of(kind.is_mod)
    past = {"S": (1, capacity, capacity)}
    frames = {ONE_FRAME: (1, 1, 1)}
    if limits.max_frames > 1:
        frames[MANY_FRAMES] = (2, max(2, limits.opt_frames), limits.max_frames)
    frames[TEXT] = (0, 0, 0)
    return {name: past | _step_ranges(config, limits, count) for name, count in frames.items()}


DIM_RANGES: dict[GraphKind, Callable[[ModelConfig, StepLimits], dict[str, DimRanges]]] = {
    VISION: _vision_ranges,
    DENSE: partial(_layer_ranges, DENSE),
    MOD: partial(_layer_ranges, MOD),
    HEAD: _head_ranges,
    REBASE: _rebase_ranges,
}


def _step_ranges(
    config: ModelConfig, limits: StepLimits, frames: tuple[int, int, int]
) -> DimRanges:
    """Ranges of X, F, T and R for steps with (min, opt, max) `frames`.

    The least text of a step of frames is the interval token, if any, before each; a step of text
    has at least one token. A step must fit in the cache of both geometries: each frame takes N of
    its T tokens and K of its R rows, the rest is text.
    """
    tokens, kept = config.frame_num_tokens, config.num_kept
    few, tuned, many = frames
    most_tokens = min(limits.max_step_tokens, limits.capacity.dense)
    needed = rows_of_frames(config, many, num_before=1) if many else Rows(1, 1)
    if not needed.fits(Rows(most_tokens, limits.capacity.mod)):
        raise ConfigError(
            f"{many} frames in a step take {needed.dense} tokens ({needed.mod} rows "
            f"in MoD layers); max_step_tokens is {limits.max_step_tokens}, the cache has "
            f"{limits.capacity.dense} rows ({limits.capacity.mod}): lower frames_per_step in the "
            "profile, or raise max_step_tokens or the window"
        )
    most_text = min(most_tokens - few * tokens, limits.capacity.mod - few * kept)
    most_tokens = min(most_tokens, limits.capacity.mod + many * (tokens - kept))
    num_intervals = len(config.stream_config.interval_ids)
    least = (few * num_intervals, tuned * num_intervals) if many else (1, 1)
    return {
        "F": frames,
        "X": (*least, most_text),
        "T": (least[0] + few * tokens, least[1] + tuned * tokens, most_tokens),
        "R": (least[0] + few * kept, least[1] + tuned * kept, most_text + few * kept),
    }
