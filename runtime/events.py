"""The events that a session yields while it streams, each with the stream's time in seconds."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from typing import Any, ClassVar

from mod_edge.plan.protocol import Decision
from mod_edge.runtime.capture.source import CaptureCounts, Image
from mod_edge.runtime.loaded_model import Int64Array
from mod_edge.runtime.preprocess import Placement

LIVE_ONLY = {"is_live": True}  # metadata of the fields that only events of live sources have


@dataclass(frozen=True)
class Event:
    """Something that happened at `time_s` seconds.

    They are seconds of video, or since a camera's first frame; without video, seconds since the
    first query.

    Attributes:
        at: the time of day in UTC (RFC 3339, milliseconds) at which a live source's last frame was
            captured; None without a live source. A clock that is set moves it, never `time_s`.
    """

    kind: ClassVar[str]
    time_s: float
    at: str | None = field(default=None, kw_only=True, metadata=LIVE_ONLY)

    def to_json(self) -> dict[str, Any]:
        """The event as one JSON object, its kind under "event".

        What only live sources have is missing for others.
        """
        live_fields = {each.name for each in fields(self) if each.metadata == LIVE_ONLY}
        values = asdict(self).items()
        return {"event": self.kind} | {
            key: value for key, value in values if value is not None or key not in live_fields
        }


@dataclass(frozen=True, eq=False)
class FrameDetails:
    """A frame as the source delivered it and as the model saw it, for drawing.

    Attributes:
        image: (H, W, 3) uint8 BGR, shared with the source: do not write to it.
        placement: where the picture lies in the model's square of I x I pixels.
        kept: by MoD layer, (K,) int64, positions among the frame's N tokens that it computed.
    """

    image: Image
    placement: Placement
    kept: Mapping[int, Int64Array]


@dataclass(frozen=True)
class FrameEvent(Event):
    """A frame was watched.

    Attributes:
        index: of the frame in the stream, from 0.
        decision: speak, silent, undecided, or asked if a query was due.
        letterbox_ms: time to resize to the model's square; frames of a batch share it evenly.
        vision_ms: time to encode, shared likewise.
        decoder_ms: time of the step and its decision, shared likewise.
        cache_fill: share of the cache's rows in use, 0..1, of the fuller geometry.
        num_dropped: frames of a live source dropped so far because the model was too slow.
        age_ms: of a live source's frame, from its capture to the start of its step.
        latency_ms: likewise to this event.
        details: only with `Session.stream(details=True)`; not in JSON.
    """

    kind = "frame"
    index: int
    decision: Decision
    letterbox_ms: float
    vision_ms: float
    decoder_ms: float
    cache_fill: float
    num_dropped: int
    age_ms: float | None = field(default=None, metadata=LIVE_ONLY)
    latency_ms: float | None = field(default=None, metadata=LIVE_ONLY)
    details: FrameDetails | None = None

    def to_json(self) -> dict[str, Any]:
        """See `Event`."""
        document = Event.to_json(replace(self, details=None))
        del document["details"]
        return document


@dataclass(frozen=True)
class QueryEvent(Event):
    """A query is about to be answered.

    Attributes:
        query: its text.
        asked_s: the time at which it was due.
        is_instruction: whether it will take the standing instruction's place.
    """

    kind = "query"
    query: str
    asked_s: float
    is_instruction: bool = False


@dataclass(frozen=True)
class TextEvent(Event):
    """One token of a reply; `text` is empty while a character is incomplete.

    If the reply ends within a character, one more event has what replaces it and the last token.
    """

    kind = "text"
    text: str
    token_id: int


class CutBy(str, Enum):
    """What cut a reply off."""

    LIMIT = "limit"  # max_new_tokens
    REQUEST = "request"  # `cut_reply` or `stop`


@dataclass(frozen=True)
class ReplyEvent(Event):
    """A reply is complete.

    Attributes:
        query: the query that it answers, None if the model spoke unasked.
        text: the whole reply.
        token_ids: its tokens, without the end token.
        is_cut: whether it was cut off; otherwise the model, or a stop text, ended it.
        first_token_ms: from the decision to the first token.
        token_ms: mean time of the steps after the first token, without the caller's own time.
        cut_by: what cut it off: "limit" (`max_new_tokens`), "request", or None.
    """

    kind = "reply"
    query: str | None
    text: str
    token_ids: list[int]
    is_cut: bool
    first_token_ms: float
    token_ms: float
    cut_by: CutBy | None = None


@dataclass(frozen=True)
class RollEvent(Event):
    """The cache was full: the oldest tokens after the sink were evicted.

    Attributes:
        num_dropped_tokens: how many, with those of an instruction that was replaced.
        num_evicted: tokens fed so far that are not in the cache.
        roll_ms: time to evict, and to prefill a new instruction.
    """

    kind = "roll"
    num_dropped_tokens: int
    num_evicted: int
    roll_ms: float


@dataclass(frozen=True)
class InstructionEvent(Event):
    """An instruction took the standing one's place in the sink, in the roll before this event.

    Attributes:
        instruction: its text.
        num_sink_tokens: tokens that are never evicted from now on.
    """

    kind = "instruction"
    instruction: str
    num_sink_tokens: int


@dataclass(frozen=True)
class ThresholdEvent(Event):
    """Decisions from now on use this threshold, see `Session.set_threshold`."""

    kind = "threshold"
    threshold: float


@dataclass(frozen=True)
class BadLineEvent(Event):
    """A line of standard input was no request; the stream goes on.

    It belongs to no stream: of several, `time_s` and `at` are those of the latest event.

    Attributes:
        line_number: from 1.
        message: what is wrong with it, and what was wanted.
    """

    kind = "bad_line"
    line_number: int
    message: str


@dataclass(frozen=True)
class FailureEvent(Event):
    """The source failed; of several streams the others go on.

    `Streams` yields it before the stream's summary. `Session.stream` raises the error instead;
    `mod-edge run` shows and records this event in both cases.
    """

    kind = "failure"
    message: str


@dataclass(frozen=True)
class Summary(Event):
    """Totals of a stream, at its end or when it was stopped.

    Attributes:
        num_frames: frames watched; `decisions` counts them by decision.
        wall_s: time from the first frame to the end.
        fps: frames per second of wall time; a live source cannot exceed its own rate.
        letterbox_ms, vision_ms, decoder_ms: p50 and p95 of the newest `stats.CAPACITY` frames.
        num_tokens: tokens ever fed; num_evicted of them were evicted, in num_rolls rolls.
        num_dropped: frames of a live source dropped because the model was too slow.
        backend: what computed it, with its CPU threads.
        warnings: for the user, one sentence each.
        age_ms, latency_ms: p50, p95 and max of the frames of a live source, as in `FrameEvent`.
        capture: what became of every picture of a live source.
    """

    kind = "summary"
    num_frames: int
    decisions: dict[str, int]
    num_replies: int
    num_reply_tokens: int
    num_rolls: int
    num_tokens: int
    num_evicted: int
    num_dropped: int
    wall_s: float
    fps: float
    letterbox_ms: dict[str, float]
    vision_ms: dict[str, float]
    decoder_ms: dict[str, float]
    cache_fill: float
    backend: str = ""
    warnings: list[str] = field(default_factory=list)
    age_ms: dict[str, float] | None = field(default=None, metadata=LIVE_ONLY)
    latency_ms: dict[str, float] | None = field(default=None, metadata=LIVE_ONLY)
    capture: CaptureCounts | None = field(default=None, metadata=LIVE_ONLY)


@dataclass(frozen=True)
class TextSummary(Event):
    """Totals of a conversation of text alone, at its end or when it was stopped.

    Attributes:
        num_replies: finished ones, with num_reply_tokens.
        num_tokens: tokens ever fed; num_evicted of them were evicted, in num_rolls rolls.
        first_token_ms: p50 and p95 of the time from a query to its reply's first token.
        tokens_per_s: tokens per second of the steps after the first tokens.
        cache_fill: share of the cache's rows in use, 0..1.
        backend: what computed it, with its CPU threads.
        warnings: for the user, one sentence each.
    """

    kind = "summary"
    num_replies: int
    num_reply_tokens: int
    num_rolls: int
    num_tokens: int
    num_evicted: int
    first_token_ms: dict[str, float]
    tokens_per_s: float
    cache_fill: float
    backend: str = ""
    warnings: list[str] = field(default_factory=list)
