"""Ranges of every dynamic dim for TensorRT: which steps an engine takes, and which it is tuned for.

A layer's engine has up to three optimization profiles, because one kernel choice cannot suit a lone
token and a prefill: `one-frame` (the step of a live stream), `many-frames` (a file's, where more
than one is allowed) and `text` (decode and prefill). Every range follows from `StepLimits` and the
letters of `signature`, so a new input without a range cannot be forgotten.
"""

from dataclasses import dataclass

from mod_edge.config import ModelConfig
from mod_edge.errors import ConfigError
from mod_edge.kv_window import Rows
from mod_edge.signature import GraphSignature

ONE_FRAME, MANY_FRAMES, TEXT, ANY = "one-frame", "many-frames", "text", "any"


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
    """The largest steps that a session may feed.

    Attributes:
        max_step_tokens: T at most.
        opt_frames: F that `many-frames` is tuned for.
        max_frames: F at most, in a step and in the vision graph.
        capacity: rows of the cache: S at most.
    """

    max_step_tokens: int
    opt_frames: int
    max_frames: int
    capacity: Rows


OptimizationProfiles = dict[str, dict[str, ShapeRange]]  # by profile and input


def optimization_profiles(
    signature: GraphSignature, config: ModelConfig, limits: StepLimits
) -> OptimizationProfiles:
    """The shapes of every input of `signature`, profile by profile, the first being the default.

    Raises:
        ConfigError: a step of one frame, or of `limits.max_frames`, does not fit in
            `limits.max_step_tokens`.
    """
    return {
        name: {
            spec.name: ShapeRange(
                *(
                    tuple(dim if isinstance(dim, int) else sizes[dim] for dim in spec.dims)
                    for sizes in zip_letters(letters)
                )
            )
            for spec in signature.inputs
        }
        for name, letters in _letters(signature, config, limits).items()
    }


Letters = dict[str, tuple[int, int, int]]  # min, opt, max


def zip_letters(letters: Letters) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Sizes by letter: the smallest, the tuned, the largest."""
    smallest, tuned, largest = (
        {letter: sizes[place] for letter, sizes in letters.items()} for place in range(3)
    )
    return smallest, tuned, largest


def _letters(
    signature: GraphSignature, config: ModelConfig, limits: StepLimits
) -> dict[str, Letters]:
    most = limits.max_frames
    if signature.kind == "vision":
        return {ANY: {"F": (1, 1, most)}}
    if signature.kind == "head":
        return {ANY: {"T": (1, 1, most)}}
    is_mod = signature.kind == "mod"
    capacity = limits.capacity.mod if is_mod else limits.capacity.dense
    if signature.kind == "rebase":
        heads = config.text_config.num_key_value_heads
        return {ANY: {"B": (heads, heads * min(128, capacity), heads * capacity)}}
    past = {"S": (1, capacity, capacity)}
    found = {ONE_FRAME: past | _step_letters(config, limits, (1, 1, 1))}
    if most > 1:
        tuned = max(2, limits.opt_frames)
        found[MANY_FRAMES] = past | _step_letters(config, limits, (2, tuned, most))
    found[TEXT] = past | _step_letters(config, limits, (0, 0, 0))
    return found


def _step_letters(config: ModelConfig, limits: StepLimits, frames: tuple[int, int, int]) -> Letters:
    """X, F, T and R; the smallest text is the interval token before each frame."""
    tokens, kept = config.frame_num_tokens, config.num_kept
    few, tuned, many = frames
    text = (max(1, few), max(1, tuned), limits.max_step_tokens - few * tokens)
    if text[2] < text[0] or limits.max_step_tokens < many * (tokens + 1):
        raise ConfigError(
            f"{many} frames a step take {many * (tokens + 1)} tokens, max_step_tokens is "
            f"{limits.max_step_tokens}; raise it or take fewer frames a step"
        )
    return {
        "X": text,
        "F": frames,
        "T": (
            text[0] + few * tokens,
            text[1] + tuned * tokens,
            limits.max_step_tokens,
        ),
        "R": (
            text[0] + few * kept,
            text[1] + tuned * kept,
            text[2] + many * kept,  # an upper bound: the longest text and the most frames at once
        ),
    }
