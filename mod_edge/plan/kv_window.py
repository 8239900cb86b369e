"""The rolling window over the KV cache, in pure integers: which rows to drop, and when.

Two geometries share one stream. Dense layers hold a row for every token, so their rows count stream
tokens; MoD layers hold text and K rows per frame. The stream is cut into segments (a frame with the
text before it, a reply). Segments are dropped whole, in both geometries at once, oldest first, but
never the sink (system prompt and standing instruction) or the segment in progress.

A token's position is the count of all tokens fed before it, skipped and evicted ones included. It
is never lowered; instead the sink moves up by `num_evicted`.

The end of the sink, its instruction, can be replaced by text of another length (`replace_sink`):
at the next eviction, the old text is dropped with the oldest segments and room is left for the new
one, which is then fed at the positions right after the rows that stay.
"""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from mod_edge.errors import CacheError


class Rows(NamedTuple):
    """A number of cache rows in each geometry; `dense` is also the number of stream tokens."""

    dense: int
    mod: int

    def of(self, is_mod: bool) -> int:
        """The rows of a MoD layer or of a dense layer."""
        return self.mod if is_mod else self.dense

    def plus(self, other: "Rows") -> "Rows":
        """Row counts added geometry by geometry."""
        return Rows(self.dense + other.dense, self.mod + other.mod)

    def minus(self, other: "Rows") -> "Rows":
        """Row counts subtracted geometry by geometry."""
        return Rows(self.dense - other.dense, self.mod - other.mod)

    def fits(self, limit: "Rows") -> bool:
        """Whether neither geometry exceeds `limit`."""
        return self.dense <= limit.dense and self.mod <= limit.mod


NO_ROWS = Rows(0, 0)


@dataclass(frozen=True)
class Eviction:
    """Rows to drop from every buffer: `dropped` rows right after the `sink` rows.

    Attributes:
        sink: rows that stay in place.
        dropped: rows to drop; later rows move down, or up if `room` is larger.
        length: rows in use before the eviction.
        num_evicted: stream tokens that are not in the cache: those evicted so far, including these,
            less `room`. The sink moves up by it.
        room: rows left between the sink and the later rows, for text to be fed next.
    """

    sink: Rows
    dropped: Rows
    length: Rows
    num_evicted: int
    room: Rows = NO_ROWS


@dataclass(frozen=True)
class SinkChange:
    """A sink's first rows, which stay, and the rows of the text that is to follow them."""

    kept: Rows
    added: Rows

    @property
    def sink(self) -> Rows:
        """The rows of the sink after the change."""
        return self.kept.plus(self.added)


class KvWindow:
    """Bookkeeping of one stream's cache; the backend holds the buffers."""

    def __init__(self, capacity: Rows, *, evict_fraction: float) -> None:
        """An empty window.

        Args:
            capacity: rows of the buffers.
            evict_fraction: share of the rows after the sink to drop at once, 0..1; spreads the
                cost of moving the remaining rows over many steps.
        """
        self.capacity = capacity
        self.evict_fraction = evict_fraction
        self.length = NO_ROWS
        self.sink = NO_ROWS
        self.num_tokens = 0
        self.num_evicted = 0
        self._sink_is_open = True
        self._sink_change: SinkChange | None = None
        self._segments: deque[Rows] = deque()

    def close_sink(self) -> None:
        """Make all rows appended so far the sink; later rows can be evicted."""
        assert self._sink_is_open, "the sink is closed already"
        self._sink_is_open = False

    @property
    def sink_is_open(self) -> bool:
        """Whether appended rows still join the sink."""
        return self._sink_is_open

    def replace_sink(self, change: SinkChange) -> None:
        """At the next eviction, keep the sink's first rows and leave room for others after them.

        Until then it takes the place of a change that was asked for before.
        """
        assert not self._sink_is_open, "close the sink first"
        assert change.kept.fits(self.sink), "the rows that stay are the sink's"
        self._sink_change = change

    def make_room(self, needed: Rows, *, continues: bool) -> Eviction | None:
        """Drop the oldest segments if `needed` rows do not fit; None if they do.

        Args:
            needed: rows that the next step appends.
            continues: whether the step continues the newest segment, which then must stay.

        Raises:
            CacheError: dropping all evictable segments does not make enough room.
        """
        if self.length.plus(needed).fits(self.capacity):
            return None
        evictable = list(self._segments)
        if continues and evictable:
            evictable.pop()
        change = self._sink_change or SinkChange(self.sink, NO_ROWS)
        growth = change.sink.minus(self.sink)
        target = self._rows_to_free(needed, growth)
        dropped, num_segments = NO_ROWS, 0
        for segment in evictable:
            if target.fits(dropped):
                break
            dropped, num_segments = dropped.plus(segment), num_segments + 1
        length = self.length.minus(dropped).plus(growth)
        if not length.plus(needed).fits(self.capacity):
            raise CacheError(self._too_small(needed, change.sink))
        for _ in range(num_segments):
            self._segments.popleft()
        dropped = self.sink.minus(change.kept).plus(dropped)
        self.num_evicted += dropped.dense - change.added.dense
        eviction = Eviction(change.kept, dropped, self.length, self.num_evicted, change.added)
        self.length, self.sink, self._sink_change = length, change.sink, None
        return eviction

    def append(self, rows: Rows, *, continues: bool) -> None:
        """Count `rows` as written, in the newest segment (`continues`) or in a new one."""
        assert self.length.plus(rows).fits(self.capacity), "call make_room before append"
        self.length = self.length.plus(rows)
        self.num_tokens += rows.dense
        if self._sink_is_open:
            self.sink = self.length
        elif continues and self._segments:
            self._segments[-1] = self._segments[-1].plus(rows)
        else:
            self._segments.append(rows)

    def take_back(self) -> None:
        """Undo the newest segment."""
        rows = self._segments.pop()
        self.length = self.length.minus(rows)
        self.num_tokens -= rows.dense

    def take_back_text(self, num_tokens: int) -> None:
        """Undo the last text tokens of the newest segment, which has at least as many."""
        if num_tokens == 0:
            return
        rows = Rows(num_tokens, num_tokens)
        assert rows.fits(self._segments[-1]), "only the newest segment can be shortened"
        self._segments[-1] = self._segments[-1].minus(rows)
        self.length = self.length.minus(rows)
        self.num_tokens -= num_tokens

    def _rows_to_free(self, needed: Rows, growth: Rows) -> Rows:
        """Rows to drop after the sink in each geometry: at least a whole chunk where it is full.

        A geometry that only a growing sink overfills drops no more than that takes.
        """
        free = []
        for length, need, grown, limit, sink in zip(
            self.length, needed, growth, self.capacity, self.sink, strict=True
        ):
            is_full = length + need > limit
            chunk = int(self.evict_fraction * (limit - sink - grown)) if is_full else 0
            free.append(max(length + need + grown - limit, chunk, 0))
        return Rows(*free)

    def _too_small(self, needed: Rows, sink: Rows) -> str:
        return (
            f"the KV cache window is too small: {needed.dense} more tokens "
            f"({needed.mod} rows in a MoD layer) do not fit next to a sink of {sink.dense} "
            f"({sink.mod}) and the segment in progress, in {self.capacity.dense} "
            f"({self.capacity.mod}) rows; raise --window or --kv-budget, or lower "
            "--max-new-tokens"
        )
