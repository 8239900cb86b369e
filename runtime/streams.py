"""Several streams on one model: they share its graphs and weights and take turns.

A round gives every stream one turn: the work up to its next event, which is at most one step or one
prompt. So a stream in a long reply delays the others by one token per frame, not by the reply.
Streams that need frames when a round reaches them have them encoded together; none waits for
another's frame.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import NamedTuple

from tokenizers import Tokenizer

from mod_edge.config import ModelConfig
from mod_edge.errors import ConfigError, SourceError
from mod_edge.plan.kv_budget import KvPlan
from mod_edge.runtime.capture.source import Source
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.events import Event, Summary
from mod_edge.runtime.loaded_model import LoadedModel
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import FrameBatch, Session, pixels_of_frames

# How often live sources are asked for a frame while none has one: a hundredth of the time between
# two frames of the paper's 2 frames/s, and a fraction of a percent of a core.
POLL_S = 0.005


class StreamEvent(NamedTuple):
    """An event and the name of its stream."""

    stream: str
    event: Event


@dataclass
class _Running:
    """A stream at work; without `events` left, it needs its next frames."""

    name: str
    session: Session
    source: Source
    events: Iterator[Event] = field(default_factory=lambda: iter(()))


class Streams(AbstractContextManager["Streams"]):
    """Runs streams on one model in turn; `open_streams` makes one from a bundle.

    A context manager that closes the model and all streams. From other threads
    only a session's `ask`, `instruct`, `set_threshold`, `cut_reply` and `stop` may be called.

    Attributes:
        max_streams: streams that may run at one time.
        frames_per_encode: the most frames, of all streams, in one call of the vision graph.
        backend: the backend and why it was chosen, for people.
        plan: of each stream's cache.
        options: of each stream.
    """

    def __init__(
        self,
        model: LoadedModel,
        config: ModelConfig,
        tokenizer: Tokenizer,
        plan: KvPlan,
        options: SessionOptions,
        *,
        max_streams: int,
        frames_per_encode: int,
        backend: str = "",
    ) -> None:
        """No stream yet: the memory of a stream is taken when it is added.

        Args:
            model: closed with this object.
            config: the model's.
            tokenizer: the model's.
            plan: of each stream's cache.
            options: of each stream.
            max_streams: streams that may run at one time.
            frames_per_encode: as the model's `StreamLimits`.
            backend: the backend and why it was chosen, for people; default: the model's name.
        """
        self.max_streams = max_streams
        self.frames_per_encode = frames_per_encode
        self.backend = backend or model.name
        self.plan = plan
        self.options = options
        self._model = model
        self._config = config
        self._tokenizer = tokenizer
        self._pixels = pixels_of_frames(config, frames_per_encode)
        self._running: dict[str, _Running] = {}
        self._failures: dict[str, SourceError] = {}

    def __exit__(self, *_exc: object) -> None:
        with ExitStack() as release:
            release.callback(self._model.close)
            for stream in self._running.values():
                release.push(stream.session)
        self._running.clear()

    def add(
        self, name: str, source: Source, queries: Sequence[Query] = (), *, details: bool = False
    ) -> Session:
        """Start a stream; also while `events` runs, between two events.

        Args:
            name: of the stream, in its events; a stream that has ended may be added again.
            source: an open source; not closed here. Closing it ends the stream.
            queries: see `Session.stream`.
            details: see `Session.stream`.

        Returns:
            Its session, for `ask`, `stop`, `summary` and the like.

        Raises:
            ConfigError: a stream of that name runs, all `max_streams` run, or the queries do not
                fit in the window.
            CacheError: not enough memory for its cache.
        """
        if name in self._running:
            raise ConfigError(f"a stream named {name!r} is running; give each stream its own name")
        if len(self._running) == self.max_streams:
            raise ConfigError(
                f"max_streams={self.max_streams} and all of them are running: "
                f"{', '.join(self._running)}; raise max_streams"
            )
        with ExitStack() as release:
            session = release.enter_context(self._open_session())
            session.begin(source, queries, details=details)
            release.pop_all()
        self._failures.pop(name, None)
        self._running[name] = _Running(name, session, source)
        return session

    def events(self) -> Iterator[StreamEvent]:
        """The events of all streams, in fair order, until all have ended.

        The last event of a stream is its `Summary`, after a `FailureEvent` if its source failed;
        its memory is then free. The other streams go on.

        Raises:
            SourceError: sources failed, and their streams were not added again; raised after the
                last event.
        """
        while self._running:
            idle = []
            for stream in list(self._running.values()):
                event = next(stream.events, None)
                if event is None:
                    idle.append(stream)
                else:
                    yield StreamEvent(stream.name, event)
            for streams in self._groups(self._ready(idle)):
                self._watch(streams)
                for stream in streams:
                    # A stream that was stopped since its frame was read has none.
                    for event in islice(stream.events, 1):
                        yield StreamEvent(stream.name, event)
        if self._failures:
            raise SourceError(
                "; ".join(f"stream {name!r}: {error}" for name, error in self._failures.items())
            ) from next(iter(self._failures.values()))

    def _ready(self, idle: list[_Running]) -> list[_Running]:
        """Those of the idle streams that have a frame; waits if no stream has anything to do."""
        if len(self._running) <= 1:  # none if the last one has just ended
            return idle  # nobody is kept waiting while it reads
        while True:
            ready = [stream for stream in idle if stream.source.is_ready]
            if ready or len(idle) < len(self._running):
                return ready
            time.sleep(POLL_S)

    def _groups(self, ready: list[_Running]) -> Iterator[list[_Running]]:
        """The streams in groups whose frames fit in one call of the vision graph."""
        group_size = self.frames_per_encode // self.options.frames_per_step
        for first in range(0, len(ready), group_size):
            yield ready[first : first + group_size]

    def _watch(self, streams: list[_Running]) -> None:
        """Read the next frames of each stream and encode them together; sets its `events`."""
        batches: list[tuple[_Running, FrameBatch]] = []
        num_frames, is_alone = 0, len(self._running) == 1
        for stream in streams:
            try:
                batch = stream.session.read(self._pixels[num_frames:], waits=is_alone)
            except SourceError as exc:
                stream.events = self._failed(stream, exc)
                continue
            if batch:
                batches.append((stream, batch))
                num_frames += len(batch)
            elif batch.has_ended:
                stream.events = self._ended(stream)
            else:
                stream.events = iter(batch.events)
        if not batches:
            return
        started = time.perf_counter()
        embeds = self._model.encode(self._pixels[:num_frames])
        vision_ms = 1000 * (time.perf_counter() - started) / num_frames
        first = 0
        for stream, batch in batches:
            ours = stream.session.state.copy_embeds(embeds[first : first + len(batch)])
            watched = stream.session.watch(batch, ours, vision_ms)
            stream.events = chain(batch.events, watched)
            first += len(batch)

    def _failed(self, stream: _Running, error: SourceError) -> Iterator[Event]:
        self._failures[stream.name] = error
        yield stream.session.failure(error)
        yield self._close(stream)

    def _ended(self, stream: _Running) -> Iterator[Event]:
        yield from stream.session.end()
        yield self._close(stream)

    def _close(self, stream: _Running) -> Summary:
        summary = stream.session.summary()
        with stream.session:
            del self._running[stream.name]
        return summary

    def _open_session(self) -> Session:
        return Session(
            self._model.open_stream(),
            self._config,
            self._tokenizer,
            self.plan,
            self.options,
            backend=self.backend,
        )
