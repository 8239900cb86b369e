"""What a session reports while it streams; every event has the stream's time in seconds."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from mod_edge.plan.protocol import Decision
from mod_edge.runtime.capture.source import Image
from mod_edge.runtime.loaded_model import Int64Array
from mod_edge.runtime.preprocess import Placement


@dataclass(frozen=True)
class Event:
    """Something that happened at `time_s` seconds of video (or since a camera's first frame)."""

    kind: ClassVar[str]
    time_s: float

    def to_json(self) -> dict[str, Any]:
        """The event as one JSON object, its kind under "event"."""
        return {"event": self.kind, **asdict(self)}


@dataclass(frozen=True, eq=False)
class FrameDetails:
    """A frame as the source gave it and as the model saw it, for who draws it.

    Attributes:
        image: (H, W, 3) uint8 BGR, the source's own: do not write to it.
        placement: where the picture lies in the model's square of I x I pixels.
        kept: by MoD layer, (K,) int64, the positions of the frame's N tokens that it computed.
    """

    image: Image
    placement: Placement
    kept: Mapping[int, Int64Array]


@dataclass(frozen=True)
class FrameEvent(Event):
    """A frame was watched.

    Attributes:
        index: counts the stream's frames from 0.
        decision: speak, silent, undecided, or asked where a query was due.
        letterbox_ms: time of resizing to the model's square, shared evenly by frames of one batch.
        vision_ms: time of encoding, shared likewise.
        decoder_ms: time of the step and its decision, shared likewise.
        cache_fill: share of the cache's rows in use, 0..1, of the fuller geometry.
        num_dropped: frames of a live source dropped so far.
        details: where `Session.stream` was asked for them; not in JSON.
    """

    kind = "frame"
    index: int
    decision: Decision
    letterbox_ms: float
    vision_ms: float
    decoder_ms: float
    cache_fill: float
    num_dropped: int
    details: FrameDetails | None = None

    def to_json(self) -> dict[str, Any]:
        """See `Event`."""
        document = Event.to_json(replace(self, details=None))
        del document["details"]
        return document


@dataclass(frozen=True)
class QueryEvent(Event):
    """A query is about to be answered; `asked_s` is the time it was asked for."""

    kind = "query"
    query: str
    asked_s: float


@dataclass(frozen=True)
class TextEvent(Event):
    """A piece of a reply, as it comes; `text` may be empty while a character is incomplete."""

    kind = "text"
    text: str
    token_id: int


@dataclass(frozen=True)
class ReplyEvent(Event):
    """A reply is complete.

    Attributes:
        query: what it answers, None where the model spoke by itself.
        text: the whole reply.
        token_ids: its tokens, without the end token.
        is_cut: whether `max_new_tokens` ended it.
        first_token_ms: from the decision to the first token.
        token_ms: mean time of the steps after the first token, printing left out.
    """

    kind = "reply"
    query: str | None
    text: str
    token_ids: list[int]
    is_cut: bool
    first_token_ms: float
    token_ms: float


@dataclass(frozen=True)
class RollEvent(Event):
    """The cache was full: the oldest `num_dropped_tokens` after the sink were forgotten."""

    kind = "roll"
    num_dropped_tokens: int
    num_evicted: int
    roll_ms: float


@dataclass(frozen=True)
class Summary(Event):
    """What a stream was, at its end or where it was stopped.

    Attributes:
        num_frames: frames watched, by decision in `decisions`.
        wall_s: time from the first frame to the end.
        fps: frames a second of wall time; a live source cannot exceed its own rate.
        letterbox_ms, vision_ms, decoder_ms: p50 and p95 of the newest frames
            (`stats.CAPACITY` of them).
        num_tokens: tokens ever fed; num_evicted of them were forgotten in num_rolls rolls.
        warnings: what a user should know, one sentence each.
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
    warnings: list[str] = field(default_factory=list)
