"""Convert a window's size between tokens, seconds, MiB and cache rows.

A window is planned for a number of frames with their interval tokens, if any, plus text: at least
enough for the sink and one reply, and at least `TEXT_SHARE` of all tokens. Each planned frame saves
N - K rows in every MoD layer.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from mod_edge.config import ModelConfig
from mod_edge.errors import ConfigError
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.targets import ITEM_BYTES

TEXT_SHARE = 1 / 8  # of replies in a narrated stream; with a larger share the window rolls earlier
BYTES_PER_MIB = 2**20


@dataclass(frozen=True)
class KvPlan:
    """A window's size.

    Attributes:
        capacity: rows of the buffers of a dense and of a MoD layer.
        size_bytes: of all layers' keys and values.
        num_seconds: of video in the window; 0 in a window for text alone.
        num_seconds_full: of video that a full-computation model would hold in the same bytes.
    """

    capacity: Rows
    size_bytes: int
    num_seconds: float
    num_seconds_full: float


def rows_of(config: ModelConfig, num_text: int, num_frames: int) -> Rows:
    """Cache rows that text tokens and whole frames take in each geometry."""
    return Rows(
        num_text + num_frames * config.frame_num_tokens, num_text + num_frames * config.num_kept
    )


def rows_of_frames(config: ModelConfig, num_frames: int, *, num_before: int) -> Rows:
    """Rows of a step of frames with `num_before` text tokens before the first."""
    num_between = len(config.stream_config.interval_ids)
    return rows_of(config, num_before + num_between * (num_frames - 1), num_frames)


def most_frames_per_step(config: ModelConfig, max_step_tokens: int) -> int:
    """Frames that fit in one step after at least one token of text, or 0."""
    return _most_frames(
        lambda frames: rows_of_frames(config, frames, num_before=1).dense <= max_step_tokens
    )


def plan_window(config: ModelConfig, window: str, text_minimum: int, *, dtype: str) -> KvPlan:
    """The plan for `window`: seconds of video ("120s") or stream tokens ("4096").

    Args:
        config: the model.
        window: a number of tokens, or of seconds with the suffix "s".
        text_minimum: text tokens that must fit beside one frame: sink and longest reply.
        dtype: of keys and values, a key of `ITEM_BYTES`.

    Raises:
        ConfigError: the window cannot be parsed or is too small.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s?)", window.strip())
    if (
        match is None
        or (not match[2] and "." in match[1])  # tokens are whole
        or (match[2] and float(match[1]) == 0)
    ):
        raise ConfigError(f"window={window!r}, wanted seconds like 120s or tokens like 4096")
    if match[2]:
        num_frames = math.ceil(float(match[1]) * config.stream_config.frame_fps)
        capacity = _capacity(config, num_frames, text_minimum)
        return _plan(config, capacity, num_frames, text_minimum, dtype)
    num_tokens = int(match[1])
    num_frames = _most_frames(
        lambda frames: _capacity(config, frames, text_minimum).dense <= num_tokens
    )
    if num_frames < 1:
        least = _capacity(config, 1, text_minimum).dense
        raise ConfigError(
            f"window={window} is too small: the sink, one frame and the longest reply take {least} "
            "tokens; take a larger window or a smaller max_new_tokens"
        )
    planned = _capacity(config, num_frames, text_minimum)
    spare = num_tokens - planned.dense
    return _plan(config, planned.plus(Rows(spare, spare)), num_frames, text_minimum, dtype)


def plan_capacity(config: ModelConfig, capacity: Rows, text_minimum: int, *, dtype: str) -> KvPlan:
    """The plan for given rows, as `in_place` graphs have them fixed.

    If `plan_window` made these rows with the same `text_minimum`, this returns the same plan.

    Raises:
        ConfigError: not even one frame fits beside `text_minimum`.
    """
    num_frames = _most_frames(lambda frames: _capacity(config, frames, text_minimum).fits(capacity))
    if num_frames < 1:
        least = _capacity(config, 1, text_minimum)
        raise ConfigError(
            f"the bundle's cache has {capacity.dense} rows ({capacity.mod} in MoD layers): the "
            f"sink, one frame and the longest reply take {least.dense} ({least.mod}); export "
            "with a larger --window, or take a smaller max_new_tokens"
        )
    return _plan(config, capacity, num_frames, text_minimum, dtype)


def plan_budget(config: ModelConfig, budget_mib: float, text_minimum: int, *, dtype: str) -> KvPlan:
    """The plan for the largest window whose keys and values take at most `budget_mib`.

    The other arguments are those of `plan_window`.

    Raises:
        ConfigError: the budget is not a finite number, or not even one frame fits.
    """
    if not math.isfinite(budget_mib):
        raise ConfigError(f"kv-budget={budget_mib:g} MiB, wanted a finite number")
    budget = budget_mib * BYTES_PER_MIB
    num_frames = _most_frames(
        lambda frames: cache_bytes(config, _capacity(config, frames, text_minimum), dtype) <= budget
    )
    if num_frames < 1:
        least = cache_bytes(config, _capacity(config, 1, text_minimum), dtype) / BYTES_PER_MIB
        enough = math.ceil(10 * least) / 10  # rounded up, so that the printed budget is enough
        raise ConfigError(
            f"kv-budget={budget_mib:g} MiB is too small: the sink, one frame and the longest reply "
            f"take {enough:.1f} MiB; raise --kv-budget or lower --max-new-tokens"
        )
    capacity = _capacity(config, num_frames, text_minimum)
    return _plan(config, capacity, num_frames, text_minimum, dtype)


def plan_of_text(config: ModelConfig, plan: KvPlan, *, dtype: str) -> KvPlan:
    """The plan for text alone, in the memory of `plan`, which is for video.

    Text takes a row in every layer, so MoD layers get as many as dense ones.
    """
    return _text_plan(config, plan.size_bytes // cache_bytes(config, Rows(1, 1), dtype), dtype)


def plan_tokens(config: ModelConfig, num_tokens: int, *, dtype: str) -> KvPlan:
    """The plan for a window of that many tokens of text alone.

    Raises:
        ConfigError: there are none. Whether queries and replies fit is known when they are asked.
    """
    if num_tokens < 1:
        raise ConfigError(f"window={num_tokens}, wanted at least 1 token")
    return _text_plan(config, num_tokens, dtype)


def _text_plan(config: ModelConfig, num_rows: int, dtype: str) -> KvPlan:
    rows = Rows(num_rows, num_rows)
    return KvPlan(rows, cache_bytes(config, rows, dtype), 0.0, 0.0)


def _capacity(config: ModelConfig, num_frames: int, text_minimum: int) -> Rows:
    interval_tokens = num_frames * len(config.stream_config.interval_ids)
    frame_tokens = num_frames * config.frame_stride
    text = max(text_minimum, math.ceil(frame_tokens * TEXT_SHARE / (1 - TEXT_SHARE)))
    return rows_of(config, interval_tokens + text, num_frames)


def cache_bytes(config: ModelConfig, capacity: Rows, dtype: str) -> int:
    """Bytes of the keys and values of all layers, in a cache with these rows."""
    text = config.text_config
    num_mod = len(config.mod_layers)
    rows = (text.num_hidden_layers - num_mod) * capacity.dense + num_mod * capacity.mod
    return 2 * rows * text.num_key_value_heads * text.head_dim * ITEM_BYTES[dtype]


def _plan(
    config: ModelConfig, capacity: Rows, num_frames: int, text_minimum: int, dtype: str
) -> KvPlan:
    size_bytes = cache_bytes(config, capacity, dtype)
    spare_rows = capacity.dense - _capacity(config, num_frames, text_minimum).dense

    def fits_full(frames: int) -> bool:
        rows = _capacity(config, frames, text_minimum).dense + spare_rows
        return cache_bytes(config, Rows(rows, rows), dtype) <= size_bytes

    fps = config.stream_config.frame_fps
    return KvPlan(capacity, size_bytes, num_frames / fps, _most_frames(fits_full) / fps)


def _most_frames(fits: Callable[[int], bool]) -> int:
    """The largest count for which the monotonic predicate `fits` is true, or 0."""
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
