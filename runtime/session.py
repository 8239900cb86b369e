"""A session turns frames into events: vision, decoder steps, decisions and replies."""

import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
from tokenizers import Tokenizer

from mod_edge.config import ModelConfig
from mod_edge.errors import ConfigError, NotStreamingError, SourceError
from mod_edge.plan.kv_budget import KvPlan, rows_of, rows_of_frames
from mod_edge.plan.kv_window import NO_ROWS, Rows
from mod_edge.plan.protocol import Decision
from mod_edge.runtime.capture.clock import rfc3339
from mod_edge.runtime.capture.live_source import LiveSource, as_live, next_frames
from mod_edge.runtime.capture.source import Frame, Source
from mod_edge.runtime.conversation import Conversation, SessionOptions, check_threshold
from mod_edge.runtime.events import (
    CutBy,
    Event,
    FailureEvent,
    FrameDetails,
    FrameEvent,
    QueryEvent,
    Summary,
    ThresholdEvent,
)
from mod_edge.runtime.loaded_model import FrameEmbeds, LoadedModel, StreamState, UInt8Array
from mod_edge.runtime.preprocess import Placement, fit_frame
from mod_edge.runtime.queries import Query, QueryQueue
from mod_edge.runtime.stats import Latencies
from mod_edge.runtime.stepper import SinkText

# Queries, and thresholds, that may wait at a time: a program that asks without end must not fill
# the memory.
MAX_WAITING = 100_000
NAMED_QUERIES = 3  # that a summary names if they were not reached; the others are counted


@dataclass(frozen=True)
class SeenFrame:
    """A frame, its picture's place in the model's square, and a live frame's age when read."""

    frame: Frame
    placement: Placement
    age_ms: float | None


@dataclass(frozen=True)
class FrameCosts:
    """Milliseconds of one frame; frames computed together share the time evenly."""

    letterbox_ms: float
    vision_ms: float
    decoder_ms: float = 0.0


@dataclass(frozen=True)
class FrameBatch:
    """Frames that were read together.

    Attributes:
        seen: the frames.
        letterbox_ms: time to resize each of them.
        events: of a live source, before the first of these frames; there may be some without a
            frame.
        has_ended: whether the source has ended; there are then no frames.
    """

    seen: list[SeenFrame] = field(default_factory=list)
    letterbox_ms: float = 0.0
    events: list[Event] = field(default_factory=list)
    has_ended: bool = False

    def __len__(self) -> int:
        return len(self.seen)


class Session(Conversation):
    """Runs one stream; `stream` can be called once.

    `Streams` runs several sessions together, calling `begin`, `read`, `watch` and `end` as `stream`
    does.
    """

    def __init__(
        self,
        state: StreamState,
        config: ModelConfig,
        tokenizer: Tokenizer,
        plan: KvPlan,
        options: SessionOptions,
        *,
        backend: str = "",
        model: LoadedModel | None = None,
    ) -> None:
        """A session on an empty stream. `open_session` makes one from a bundle.

        Args:
            state: the stream; closed with the session.
            config: the model's.
            tokenizer: the model's.
            plan: of the stream's cache.
            options: of the stream.
            backend: the backend and why it was chosen, for people; default: the stream's name.
            model: closed with the session; None if it is shared.
        """
        super().__init__(state, config, tokenizer, plan, options, backend=backend, model=model)
        self._time_s = 0.0
        self._num_frames = 0
        self._decisions = Counter[Decision]()
        self._letterbox_ms, self._vision_ms, self._decoder_ms = (Latencies() for _ in range(3))
        self._age_ms, self._latency_ms = Latencies(), Latencies()
        self._source: Source | None = None
        self._live: LiveSource | None = None
        self._at: str | None = None  # when the last frame of a live source was captured
        self._frames = iter(tuple[Frame]())
        self._queries = QueryQueue()
        self._is_streaming = self._must_stop = False
        self._has_details = False
        self._thresholds = deque[float](maxlen=MAX_WAITING)  # not in use yet; from any thread
        # What the window must have room for, whatever is asked: read and raised by any thread.
        self._admission = threading.Lock()
        self._standing_rows = NO_ROWS
        self._longest_prompt = 0
        self._sink_kept = NO_ROWS  # the sink's rows that stay when its instruction is replaced

    def stream(
        self, source: Source, queries: Sequence[Query] = (), *, details: bool = False
    ) -> Iterator[Event]:
        """Watch `source` to its end, yielding events as they happen.

        Args:
            source: an open source; not closed here.
            queries: asked at their times. The one due at the first frame is the standing
                instruction, which is never evicted. `ask` adds more while the stream runs.
            details: whether frame events carry `FrameDetails`.

        Raises:
            ConfigError: queries, replies or the frames of a step do not fit in the window, or the
                session has streamed already; raised at the first event.
            SourceError: the source failed.
        """
        self.begin(source, queries, details=details)
        pixels = pixels_of_frames(self.config, self.options.frames_per_step)
        try:
            while not (batch := self.read(pixels)).has_ended:
                yield from batch.events
                if not batch:
                    continue
                started = time.perf_counter()
                embeds = self.state.encode(pixels[: len(batch)])
                vision_ms = 1000 * (time.perf_counter() - started) / len(batch)
                yield from self.watch(batch, embeds, vision_ms)
            yield from self.end()
        finally:
            self._is_streaming = False

    def begin(
        self, source: Source, queries: Sequence[Query] = (), *, details: bool = False
    ) -> None:
        """Check that `source` can be watched, and start; arguments and errors as for `stream`."""
        if self._source is not None:
            raise ConfigError("this session has streamed already; open a new session")
        self._check_window(queries)
        self._source, self._has_details = source, details
        self._live = as_live(source)
        self._queries = QueryQueue(queries)
        self._frames = iter(source)
        self._is_streaming = True

    def read(self, pixels: UInt8Array, *, waits: bool = True) -> FrameBatch:
        """The frames of the next step, fitted into the first of `pixels` (F, I, I, 3).

        A slow model gets all frames that wait, up to those of a step.

        Args:
            pixels: memory for them.
            waits: whether to wait for a live source's frame or event.

        Raises:
            SourceError: the source failed.
        """
        read = None if self._must_stop else self._next_frames(waits=waits)
        if read is None:
            return FrameBatch(has_ended=True)
        frames, events = read
        ages_ms = [self._ms_since_capture(frame) for frame in frames]
        started = time.perf_counter()
        self._started_s = self._started_s or started
        seen = [
            SeenFrame(frame, fit_frame(frame.image, square, self.config.vision_config), age_ms)
            for frame, square, age_ms in zip(frames, pixels, ages_ms, strict=False)
        ]
        letterbox_ms = 1000 * (time.perf_counter() - started) / max(len(seen), 1)
        return FrameBatch(seen, letterbox_ms, events)

    def _next_frames(self, *, waits: bool) -> tuple[list[Frame], list[Event]] | None:
        most = self.options.frames_per_step
        if self._live is not None:
            return next_frames(self._live, most, waits=waits)
        frames = list(islice(self._frames, most))
        return (frames, []) if frames else None

    def watch(self, batch: FrameBatch, embeds: FrameEmbeds, vision_ms: float) -> Iterator[Event]:
        """Feed the batch's frames in as few steps as decisions allow, and reply.

        At most one step, or one prompt, is computed from one event to the next.

        Args:
            batch: from `read`.
            embeds: of its frames, in the stream's memory.
            vision_ms: time to encode each of them.
        """
        yield from map(self.stamped, self._watched(batch, embeds, vision_ms))

    def _watched(self, batch: FrameBatch, embeds: FrameEmbeds, vision_ms: float) -> Iterator[Event]:
        seen, costs = batch.seen, FrameCosts(batch.letterbox_ms, vision_ms)
        first = 0
        while first < len(seen):
            # What is asked before the first frame waits until then: the cache has no room for it
            # as a standing instruction.
            while (
                self._num_frames
                and not self._must_stop
                and self._received().is_due_before(seen[first].frame.time_s)
            ):
                yield from self._answer(self._queries.take())
            if self._must_stop:
                return
            yield from self._change_threshold()
            last = first + 1
            # A query due before a frame is answered first, so that frame is not in this step.
            while last < len(seen) and not self._queries.is_due_before(seen[last].frame.time_s):
                last += 1
            first += yield from self._feed(seen[first:last], embeds[first:last], costs)

    def end(self) -> Iterator[Event]:
        """Answer the queries that are due by the end of the last frame; `ask` is refused after."""
        end_s = self._time_s + 1 / self.config.stream_config.frame_fps
        while self._num_frames and not self._must_stop and self._received().is_due_at(end_s):
            yield from map(self.stamped, self._answer(self._queries.take()))
        yield from map(self.stamped, self._change_threshold())
        self._is_streaming = False

    def failure(self, error: SourceError) -> Event:
        """The event of a source that failed."""
        return self.stamped(FailureEvent(self._time_s, str(error)))

    def stamped(self, event: Event) -> Event:
        """The event with the time of day of the last live frame, if it has none of its own."""
        return event if self._at is None or event.at else replace(event, at=self._at)

    def ask(self, query: str | Query) -> None:
        """Ask the model a query while the stream runs, from any thread.

        Args:
            query: a string is due at once, before the next step; a `Query` at its own time, or at
                once if that has passed. Before the first frame, both wait for it; they never become
                the standing instruction.

        Raises:
            NotStreamingError: the session is not streaming.
            ConfigError: the query is empty or does not fit in the window, or `MAX_WAITING` queries
                wait already.
        """
        if not self._is_streaming:
            text = query if isinstance(query, str) else query.text
            raise NotStreamingError(
                f"cannot ask {text[:40]!r}: the stream has not begun or has ended; ask while it "
                "runs, or pass the query to stream()"
            )
        if len(self._queries) >= MAX_WAITING:
            raise ConfigError(
                f"{MAX_WAITING} queries wait already; ask again when some were answered"
            )
        if isinstance(query, str):
            query = Query(query, self._time_s)
        with self._admission:
            self._admit(query)
        self._queries.put(query)

    def instruct(self, instruction: str) -> None:
        """Replace the standing instruction while the stream runs, from any thread.

        The instruction is a user's turn at once, as with `ask`. At the next roll of the cache it
        takes the old one's place in the sink, which an `InstructionEvent` tells: the system prompt
        and the first frame stay, the old instruction is evicted, and the new one is prefilled right
        after them. In a stream that began without an instruction it follows the system prompt. Rows
        after the sink stay as they were computed. With the rows of a longer instruction, the roll
        evicts that much more.

        Raises:
            ConfigError: as `ask`.
        """
        self.ask(Query(instruction, self._time_s, is_instruction=True))

    def set_threshold(self, threshold: float) -> None:
        """Change the threshold (see `Protocol`) before the next frame is fed, from any thread.

        A `ThresholdEvent` comes right before the first decision that uses it. While the source
        gives no frame the newest `MAX_WAITING` wait.

        Raises:
            ConfigError: it is not a probability.
        """
        check_threshold(threshold)
        self._thresholds.append(threshold)

    def stop(self) -> None:
        """End the stream, from any thread: a reply after its present token, else at the next frame.

        A live source ends at once, also while it is lost. Queries that wait are not answered.
        """
        self._must_stop = True
        if self._live is not None:
            self._live.end()

    def __exit__(self, *exc: object) -> None:
        self._is_streaming = False
        super().__exit__(*exc)

    @property
    def time_s(self) -> float:
        """The time of the last frame, in seconds of video; 0 before the first."""
        return self._time_s

    def summary(self) -> Summary:
        """Totals so far."""
        wall_s = time.perf_counter() - self._started_s if self._started_s else 0.0
        warnings = list(self._source.warnings) if self._source else []
        warnings += self.state.warnings
        warnings += self._unreached()
        return Summary(
            time_s=self._time_s,
            at=self._at,
            num_frames=self._num_frames,
            decisions={decision.value: self._decisions[decision] for decision in Decision},
            num_replies=self._num_replies,
            num_reply_tokens=self._num_reply_tokens,
            num_rolls=self._num_rolls,
            num_tokens=self.window.num_tokens,
            num_evicted=self.window.num_evicted,
            num_dropped=self._source.num_dropped if self._source else 0,
            wall_s=round(wall_s, 3),
            fps=round(self._num_frames / wall_s, 2) if wall_s else 0.0,
            letterbox_ms=self._letterbox_ms.percentiles(),
            vision_ms=self._vision_ms.percentiles(),
            decoder_ms=self._decoder_ms.percentiles(),
            cache_fill=round(self._cache_fill(), 4),
            backend=self.backend,
            warnings=warnings,
            age_ms=self._age_ms.with_longest() if self._live else None,
            latency_ms=self._latency_ms.with_longest() if self._live else None,
            capture=self._live.counts if self._live else None,
        )

    def _unreached(self) -> list[str]:
        waiting = self._queries.waiting()
        lines = [
            f"the query {query.text!r} at {query.time_s:g} s was not reached"
            for query in waiting[:NAMED_QUERIES]
        ]
        more = len(waiting) - len(lines)
        return [*lines, f"{more} more queries were not reached"] if more else lines

    def _received(self) -> QueryQueue:
        """The queue with the queries that `ask` has put in since."""
        self._queries.receive()
        return self._queries

    def _change_threshold(self) -> Iterator[Event]:
        while self._thresholds:
            self._protocol.threshold = self._thresholds.popleft()
            yield ThresholdEvent(self._time_s, self._protocol.threshold)

    def _feed(
        self, seen: list[SeenFrame], embeds: FrameEmbeds, costs: FrameCosts
    ) -> Generator[Event, None, int]:
        """Feed frames in one step; returns how many stand, the others are taken back."""
        started = time.perf_counter()
        is_standing = self._queries.is_due_at(seen[0].frame.time_s)
        logits = self._stepper.feed_frames(
            self._protocol.frame_prefix(),
            embeds,
            closes_sink=self.window.sink_is_open and not is_standing,
        )
        decisions: list[Decision] = []
        for each, row in zip(seen, logits, strict=True):
            is_asked = self._queries.is_due_at(each.frame.time_s)
            decisions.append(Decision.ASKED if is_asked else self._protocol.decide(row))
            if decisions[-1] in (Decision.ASKED, Decision.SPEAK):
                break
        # Frames that are taken back cost time too, which is counted to those that stand.
        num_standing = len(decisions)
        self._stepper.take_back_frames(len(seen) - num_standing)
        costs = replace(costs, decoder_ms=1000 * (time.perf_counter() - started) / num_standing)
        details = self._details(seen[:num_standing])
        yield from self._take_rolls(self._time_s)
        for each, decision, detail in zip(seen, decisions, details, strict=False):
            yield self._note_frame(each, decision, costs, detail)
        if decisions[-1] is Decision.ASKED:
            yield from self._answer(self._queries.take())
        elif decisions[-1] is Decision.SPEAK:
            yield from self._answer(None)
        return num_standing

    def _details(self, seen: list[SeenFrame]) -> list[FrameDetails | None]:
        """Details of the first frames of the last step; None unless `stream` wants them."""
        if not self._has_details:
            return [None] * len(seen)
        kept = self.state.kept
        return [
            FrameDetails(
                each.frame.image,
                each.placement,
                {layer: rows[number].copy() for layer, rows in kept.items()},
            )
            for number, each in enumerate(seen)
        ]

    def _note_frame(
        self, seen: SeenFrame, decision: Decision, costs: FrameCosts, details: FrameDetails | None
    ) -> FrameEvent:
        frame, latency_ms = seen.frame, self._ms_since_capture(seen.frame)
        self._protocol.note_frame()
        self._time_s = frame.time_s
        self._at = None if frame.at is None else rfc3339(frame.at)
        self._num_frames += 1
        self._decisions[decision] += 1
        self._letterbox_ms.add(costs.letterbox_ms)
        self._vision_ms.add(costs.vision_ms)
        self._decoder_ms.add(costs.decoder_ms)
        if seen.age_ms is not None and latency_ms is not None:
            self._age_ms.add(seen.age_ms)
            self._latency_ms.add(latency_ms)
        assert self._source is not None
        return FrameEvent(
            time_s=frame.time_s,
            index=frame.index,
            decision=decision,
            letterbox_ms=round(costs.letterbox_ms, 3),
            vision_ms=round(costs.vision_ms, 3),
            decoder_ms=round(costs.decoder_ms, 3),
            cache_fill=round(self._cache_fill(), 4),
            num_dropped=self._source.num_dropped,
            age_ms=seen.age_ms,
            latency_ms=latency_ms,
            details=details,
        )

    def _ms_since_capture(self, frame: Frame) -> float | None:
        """Milliseconds since a live source's frame was captured; None for a file's."""
        if self._live is None or frame.captured_s is None:
            return None
        return round(1000 * (self._live.clock.now_s() - frame.captured_s), 3)

    def _answer(self, query: Query | None) -> Iterator[Event]:
        """Reply to `query` or to the last frame."""
        if query is not None:
            yield QueryEvent(self._time_s, query.text, query.time_s, query.is_instruction)
            if query.is_instruction and not self.window.sink_is_open:
                self._stepper.replace_sink(self._sink_text(query))
        text = query.text if query else None
        yield from self._reply(self._protocol.response_prompt(text), text, self._time_s)

    def _cut_by(self, num_tokens: int) -> CutBy | None:
        cut_by = super()._cut_by(num_tokens)
        return CutBy.REQUEST if cut_by is None and self._must_stop else cut_by

    def _check_window(self, queries: Sequence[Query]) -> None:
        """Check at the start that every step and reply will fit beside the sink."""
        protocol = self._protocol
        standing = [query for query in queries if query.time_s <= 0][:1]
        sink = rows_of(self.config, len(protocol.opening_ids()), 0)
        for query in standing:  # the sink then also holds the first frame
            self._sink_kept = rows_of(self.config, sink.dense, 1)
            sink = self._sink_kept.plus(rows_of(self.config, self._num_prompt_tokens(query), 0))
        self._standing_rows = sink
        self._check_step(sink)
        prompts = {query.text: self._num_prompt_tokens(query) for query in queries}
        longest = max(prompts, key=lambda text: prompts[text], default="")
        unasked = len(protocol.response_prompt(None)) + 1
        self._longest_prompt = max(prompts.get(longest, 0), unasked)
        self._check_question(longest, self._longest_prompt, sink)
        for query in queries:
            if query.is_instruction:
                self._admit(query)

    def _admit(self, query: Query) -> None:
        """Check that a query, its reply and every other one will fit, whenever the sink changes."""
        num_tokens = self._num_prompt_tokens(query)
        if not query.is_instruction:
            self._check_question(query.text, num_tokens, self._standing_rows)
            self._longest_prompt = max(self._longest_prompt, num_tokens)
            return
        text = self._sink_text(query)
        sink = text.kept.plus(rows_of(self.config, len(text.token_ids), 0))
        sink = Rows(*map(max, sink, self._standing_rows))
        longest = max(self._longest_prompt, num_tokens)
        self._check_step(sink)
        self._check_question(query.text, longest, sink)
        self._standing_rows, self._longest_prompt = sink, longest

    def _sink_text(self, query: Query) -> SinkText:
        """What the sink gets in place of its instruction."""
        if any(self._sink_kept):
            return SinkText(query.text, self._sink_kept, self._protocol.query_ids(query.text))
        # The sink has no frame: it becomes that of a conversation that opens with the instruction.
        return SinkText(query.text, NO_ROWS, self._protocol.opening_prompt(query.text))

    def _check_step(self, sink: Rows) -> None:
        """Check that a step of frames fits beside the sink."""
        limit, num_frames = self.plan.capacity, self.options.frames_per_step
        num_before = self._protocol.longest_prefix()
        step = rows_of_frames(self.config, num_frames, num_before=num_before)
        if not sink.plus(step).fits(limit):
            raise ConfigError(
                f"frames_per_step={num_frames} takes {step.dense} tokens per step: with the system "
                f"prompt and the standing instruction that is {sink.plus(step).dense}, the window "
                f"has {limit.dense}; raise --window or --kv-budget, shorten the instruction, or "
                "lower --frames-per-step"
            )

    def _check_question(self, text: str, num_prompt_tokens: int, sink: Rows) -> None:
        self._check_reply(text, self._protocol.longest_prefix(), num_prompt_tokens, sink)

    def _num_prompt_tokens(self, query: Query) -> int:
        return len(self._protocol.query_ids(query.text))


def pixels_of_frames(config: ModelConfig, num_frames: int) -> UInt8Array:
    """Memory for frames as the vision graph takes them, (F, I, I, 3)."""
    side = config.vision_config.image_size
    return np.zeros((num_frames, side, side, 3), np.uint8)
