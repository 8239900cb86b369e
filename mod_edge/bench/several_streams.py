"""What several streams cost on one model: time and memory of 1, 2 and 4 that take turns."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from mod_edge.bench.memory import memory_now
from mod_edge.bundle.bundle import Bundle
from mod_edge.config import ModelConfig
from mod_edge.errors import ConfigError
from mod_edge.plan.kv_budget import KvPlan, rows_of_frames
from mod_edge.plan.kv_window import KvWindow, Rows
from mod_edge.profiles import Profile
from mod_edge.runtime.backends import BackendChoice, load_model
from mod_edge.runtime.loaded_model import (
    FrameEmbeds,
    LoadedModel,
    StreamLimits,
    StreamState,
    UInt8Array,
)
from mod_edge.runtime.stepper import Stepper

NUM_STREAMS = (1, 2, 4)
WARM_UP_ROUNDS = 2
TEXT_ID = 0  # the value of an id does not change what a step costs
SEED = 0


@dataclass(frozen=True)
class StreamsRow:
    """A number of streams taking turns on one model, one frame each in a round.

    Attributes:
        num_streams: on the model.
        num_past: tokens in the window of each before its frame.
        vision_ms: of a frame, all streams' frames being encoded together; median.
        decoder_ms: of a frame's step and its decision; median.
        frame_ms: of a frame of one stream, both together; median.
        ratio: of `frame_ms` to that of one stream, median of the rounds.
        stream_bytes: memory that each stream after the first has taken, on the GPU if the model is
            there, else anonymous; None for one stream, and where the system does not report it.
        kv_bytes: of a stream's whole cache.
    """

    num_streams: int
    num_past: int
    vision_ms: float
    decoder_ms: float
    frame_ms: float
    ratio: float
    stream_bytes: int | None
    kv_bytes: int

    @property
    def fps(self) -> float:
        """Frames per second of all streams together."""
        return 1000 / self.frame_ms

    @property
    def interval_ms(self) -> float:
        """Milliseconds from one frame of a stream to its next."""
        return self.frame_ms * self.num_streams

    def to_json(self) -> dict[str, Any]:
        """The fields and what follows from them."""
        fields = asdict(self) | {"fps": self.fps, "interval_ms": self.interval_ms}
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in fields.items()
        }


def measure_streams(
    bundle: Bundle,
    choice: BackendChoice,
    profile: Profile,
    plan: KvPlan,
    *,
    num_past: int,
    num_rounds: int,
    counts: Sequence[int] = NUM_STREAMS,
) -> list[StreamsRow]:
    """A row for each number of streams; their rounds are interleaved.

    Args:
        bundle: with every layer; loaded and closed here.
        choice: of the backend.
        profile: with the longest step, and the most frames that are encoded together.
        plan: of each stream's cache.
        num_past: tokens of text in the window of each, at least 2.
        num_rounds: that are counted, after two that are not.
        counts: numbers of streams in ascending order; the first is 1.

    Raises:
        ConfigError: the window has no room for a frame after `num_past` tokens, or the profile does
            not take a frame of each stream at once.
        BackendError: the backend cannot run here.
        CacheError: not enough memory.
    """
    most = counts[-1]
    _check_room(bundle.config, profile, plan, num_past, most)
    limits = StreamLimits(plan.capacity, profile.max_step_tokens, 1, most)
    side = bundle.config.vision_config.image_size
    pixels = np.random.default_rng(SEED).integers(0, 256, (most, side, side, 3), np.uint8)
    with ExitStack() as opened:
        model = opened.enter_context(load_model(bundle, limits, choice)[0])
        model.encode(pixels)  # so that no stream's memory has that of a larger batch in it
        streams: list[_TextStream] = []
        used: list[int | None] = []
        for _ in range(most):
            state = opened.enter_context(model.open_stream())
            streams.append(_TextStream(state, bundle.config, profile, plan, num_past))
            for _ in range(WARM_UP_ROUNDS):  # the second captures a CUDA graph
                _round(model, streams[-1:], pixels)
            used.append(_used_bytes(model))
        rounds = [
            [_round(model, streams[:count], pixels) for count in counts]
            for _ in range(WARM_UP_ROUNDS + num_rounds)
        ][WARM_UP_ROUNDS:]
    return [
        StreamsRow(
            num_streams=count,
            num_past=num_past,
            vision_ms=median(each[place].vision_ms for each in rounds),
            decoder_ms=median(each[place].decoder_ms for each in rounds),
            frame_ms=median(each[place].frame_ms for each in rounds),
            ratio=median(each[place].frame_ms / each[0].frame_ms for each in rounds),
            stream_bytes=_grown(used, count),
            kv_bytes=plan.size_bytes,
        )
        for place, count in enumerate(counts)
    ]


@dataclass(frozen=True)
class _RoundTimes:
    """Milliseconds of one frame of one stream, mean of a round."""

    vision_ms: float
    decoder_ms: float

    @property
    def frame_ms(self) -> float:
        return self.vision_ms + self.decoder_ms


class _TextStream:
    """A stream whose window holds text; each frame is taken back, so that all rounds are alike."""

    def __init__(
        self,
        state: StreamState,
        config: ModelConfig,
        profile: Profile,
        plan: KvPlan,
        num_past: int,
    ) -> None:
        window = KvWindow(plan.capacity, evict_fraction=profile.evict_fraction)
        self._state = state
        self._stepper = Stepper(state, config, window, profile.max_step_tokens)
        self._interval = config.stream_config.interval_ids
        self._stepper.feed_text([TEXT_ID], continues=False)
        window.close_sink()  # frames can be taken back after it
        self._stepper.feed_text([TEXT_ID] * (num_past - 1), continues=False)

    def watch(self, embeds: FrameEmbeds) -> None:
        """Feed a frame and read its logits."""
        own = self._state.copy_embeds(embeds)
        self._stepper.feed_frames(self._interval, own, closes_sink=False).argmax()
        self._stepper.take_back_frames(1)


def _round(model: LoadedModel, streams: Sequence[_TextStream], pixels: UInt8Array) -> _RoundTimes:
    """One frame of each stream, encoded together and fed one after the other."""
    count = len(streams)
    started = time.perf_counter()
    embeds = model.encode(pixels[:count])
    encoded = time.perf_counter()
    for number, stream in enumerate(streams):
        stream.watch(embeds[number : number + 1])
    ended = time.perf_counter()
    return _RoundTimes(1000 * (encoded - started) / count, 1000 * (ended - encoded) / count)


def _used_bytes(model: LoadedModel) -> int | None:
    """The memory in use where the model's caches are."""
    return memory_now().anonymous if model.driver is None else model.driver.used_bytes


def _grown(used: Sequence[int | None], count: int) -> int | None:
    """Bytes that each stream after the first took, up to that number of streams."""
    first, last = used[0], used[count - 1]
    if count == 1 or first is None or last is None:
        return None
    return (last - first) // (count - 1)


def _check_room(
    config: ModelConfig, profile: Profile, plan: KvPlan, num_past: int, most: int
) -> None:
    needed = rows_of_frames(config, 1, num_before=1).plus(Rows(num_past, num_past))
    if not needed.fits(plan.capacity):
        raise ConfigError(
            f"a frame after {num_past} tokens needs {needed.dense} tokens ({needed.mod} rows in "
            f"MoD layers), the window has {plan.capacity.dense} ({plan.capacity.mod}); raise "
            "--window or --kv-budget"
        )
    if most > profile.frames_per_step.max:
        raise ConfigError(
            f"{most} streams encode {most} frames at once, profile {profile.name!r} allows "
            f"{profile.frames_per_step.max}; measure fewer streams"
        )
