"""Other policies of the KV cache's window, on the PyTorch reference, to compare with the runtime's.

A `TrimmedStream` trims its own cache, so its session needs a window that never rolls. It knows
three policies:

- rolling: drops the oldest frames and replies, and rebases the positions, as the runtime does;
- rolling without rebase: positions grow without end, and the distance to the sink with them;
- text kept longer than vision: drops old frames and keeps what was said at them, as StreamingVLM
  does (arXiv:2510.09608).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mod_edge.config import ModelConfig
from mod_edge.errors import CacheError
from mod_edge.model.video_llm import VideoLLM
from mod_edge.plan.kv_budget import KvPlan
from mod_edge.plan.kv_window import NO_ROWS, Eviction, Rows
from mod_edge.plan.layout import StepLayout
from mod_edge.runtime.cpu.torch_model import TorchModel, TorchStream
from mod_edge.runtime.loaded_model import FrameEmbeds, StreamState, WrappedStream

# For the session of a `TrimmedStream`: more rows than any stream fills.
ENDLESS = KvPlan(Rows(2**40, 2**40), size_bytes=0, num_seconds=0.0, num_seconds_full=0.0)


@dataclass(frozen=True)
class WindowPolicy:
    """What a full window drops, and the positions of what it keeps.

    Attributes:
        rebases: whether positions are lowered as if evicted tokens had never been fed.
        text_share: share of the rows after the sink that may hold text without its frames, 0..1.
    """

    rebases: bool = True
    text_share: float = 0.0


ROLLING = WindowPolicy()
WITHOUT_REBASE = WindowPolicy(rebases=False)
TEXT_KEPT_LONGER = WindowPolicy(text_share=1 / 8)


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of the cache: a frame with the text before it, or a prompt and its reply.

    Attributes:
        rows: all of them.
        text: the first of them, which hold what was said; none before a frame in silence.
    """

    rows: Rows
    text: Rows

    def joined(self, later: "Segment") -> "Segment":
        """This segment, continued by `later`; both are text."""
        return Segment(self.rows.plus(later.rows), self.text.plus(later.text))


class GrowingStream(TorchStream):
    """The reference without rebase: every token keeps the position at which it was fed."""

    def evict(self, eviction: Eviction) -> None:
        """Drop rows from every layer's cache."""
        for index, cache in enumerate(self._caches):
            sink = self._rows(eviction.sink, index)
            first = sink + self._rows(eviction.dropped, index)
            length = self._rows(eviction.length, index)
            cache.keep(torch.cat([torch.arange(sink), torch.arange(first, length)]))


class TrimmedStream(WrappedStream):
    """A stream that keeps its cache within `capacity` by a policy.

    Its session has the window `ENDLESS`, takes one frame per step and has a standing instruction,
    which completes the sink.
    """

    def __init__(
        self,
        inner: StreamState,
        config: ModelConfig,
        policy: WindowPolicy,
        capacity: Rows,
        *,
        evict_fraction: float,
    ) -> None:
        """Trim the cache of `inner`; `open_trimmed_stream` opens the one that a policy needs.

        Args:
            inner: an empty stream, closed with this one.
            config: the model's.
            policy: what to drop.
            capacity: rows to keep at most.
            evict_fraction: see `KvWindow`.
        """
        super().__init__(inner)
        self.num_evicted: list[int] = []  # stream tokens evicted so far, after each roll
        self._interval_ids = list(config.stream_config.interval_ids)
        self._policy = policy
        self._capacity = capacity
        self._evict_fraction = evict_fraction
        self._sink = self._length = NO_ROWS
        self._num_tokens = 0
        self._segments: list[Segment] = []
        self._sink_is_open, self._is_after_frame = True, False

    def step(
        self,
        layout: StepLayout,
        token_ids: Sequence[int],
        frame_embeds: FrameEmbeds | None,
        *,
        position: int,
        past: Rows,
    ) -> None:
        """See `StreamState`; `past` counts evicted rows too and is not used."""
        assert layout.num_frames <= 1, "the frames of a larger step may be taken back"
        assert position == self._num_tokens, "nothing that was fed can be taken back"
        has_frame = layout.num_frames == 1
        rows = Rows(layout.num_tokens, layout.num_rows)
        continues = not has_frame and not self._is_after_frame
        self._make_room(rows, continues=continues)
        self.inner.step(layout, token_ids, frame_embeds, position=position, past=self._length)
        is_silent = has_frame and list(token_ids) == self._interval_ids
        num_said = 0 if is_silent else len(token_ids)
        self._append(Segment(rows, Rows(num_said, num_said)), continues=continues)
        if self._is_after_frame and not has_frame:
            self._sink_is_open = False
        self._is_after_frame = has_frame

    def _append(self, segment: Segment, *, continues: bool) -> None:
        self._num_tokens += segment.rows.dense
        self._length = self._length.plus(segment.rows)
        if self._sink_is_open:
            self._sink = self._length
        elif continues and self._segments:
            self._segments[-1] = self._segments[-1].joined(segment)
        else:
            self._segments.append(segment)

    def _make_room(self, needed: Rows, *, continues: bool) -> None:
        """Drop old segments, but for the text to keep, if `needed` rows do not fit."""
        if self._length.plus(needed).fits(self._capacity):
            return
        evictable = self._segments[:-1] if continues else self._segments
        target = self._rows_to_free(needed)
        num_old, kept = 0, list[Rows]()
        while num_old < len(evictable) and not target.fits(_freed(evictable[:num_old], kept)):
            num_old += 1
            kept = self._text_to_keep(evictable[:num_old])
        freed = _freed(evictable[:num_old], kept)
        if not self._length.minus(freed).plus(needed).fits(self._capacity):
            raise CacheError(
                f"a step of {needed.dense} tokens does not fit in {self._capacity.dense} rows next "
                f"to a sink of {self._sink.dense} and the text to keep; lower text_share"
            )
        self._evict(num_old, kept)

    def _rows_to_free(self, needed: Rows) -> Rows:
        """The missing rows of each geometry, and at least a chunk where any are missing."""
        missing = self._length.plus(needed).minus(self._capacity)
        chunk = (int(self._evict_fraction * rows) for rows in self._capacity.minus(self._sink))
        return Rows(
            *(max(*each) if each[0] > 0 else 0 for each in zip(missing, chunk, strict=True))
        )

    def _text_to_keep(self, old: Sequence[Segment]) -> list[Rows]:
        """The rows of text that each of these segments keeps; the newest text has precedence."""
        left = int(self._policy.text_share * (self._capacity.dense - self._sink.dense))
        kept = []
        for segment in reversed(old):
            left -= segment.text.dense
            kept.append(segment.text if left >= 0 else NO_ROWS)
        return kept[::-1]

    def _evict(self, num_old: int, kept: Sequence[Rows]) -> None:
        """Reduce each of the oldest segments to its kept text."""
        before, total = self._sink, self.num_evicted[-1] if self.num_evicted else 0
        for segment, text in zip(self._segments[:num_old], kept, strict=True):
            before = before.plus(text)
            dropped = segment.rows.minus(text)
            if dropped == NO_ROWS:
                continue
            total += dropped.dense
            self.inner.evict(Eviction(before, dropped, self._length, total))
            self._length = self._length.minus(dropped)
        self.num_evicted.append(total)
        texts = [Segment(text, text) for text in kept if text != NO_ROWS]
        self._segments[:num_old] = texts


def open_trimmed_stream(
    model: VideoLLM, policy: WindowPolicy, capacity: Rows, *, evict_fraction: float
) -> TrimmedStream:
    """An empty stream on the reference that keeps its cache by `policy`; see `TrimmedStream`."""
    loaded = TorchModel(model)
    inner = TorchStream(loaded, model) if policy.rebases else GrowingStream(loaded, model)
    return TrimmedStream(inner, model.config, policy, capacity, evict_fraction=evict_fraction)


def _freed(old: Sequence[Segment], kept: Sequence[Rows]) -> Rows:
    """The rows that become free if each segment is reduced to its kept text."""
    freed = NO_ROWS
    for segment, text in zip(old, kept, strict=True):
        freed = freed.plus(segment.rows.minus(text))
    return freed
