"""How `mod-edge run` shows a stream: a live view on a terminal, else plain lines or JSON lines."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from mod_edge.commands.console import (
    can_redraw,
    err,
    out,
    print_json,
    print_pairs,
    print_warning,
    printable,
)
from mod_edge.commands.live_lines import SOURCE_EVENTS, age_status, live_rows, source_line
from mod_edge.commands.standard_input import StandardInput, with_faults
from mod_edge.errors import ModEdgeError, SourceError
from mod_edge.plan.protocol import Decision
from mod_edge.runtime.capture.live_source import as_live
from mod_edge.runtime.capture.source import Source
from mod_edge.runtime.events import (
    BadLineEvent,
    Event,
    FailureEvent,
    FrameEvent,
    InstructionEvent,
    QueryEvent,
    ReplyEvent,
    RollEvent,
    Summary,
    TextEvent,
    TextSummary,
    ThresholdEvent,
)
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import Session
from mod_edge.runtime.streams import Streams

DECISION_STYLES = {
    Decision.SILENT: "dim",
    Decision.SPEAK: "bold green",
    Decision.UNDECIDED: "yellow",
    Decision.ASKED: "bold cyan",
}
TYPING_HINT = " type a question, or /instruction TEXT, /threshold 0-1, /cut, /stop"


@dataclass(frozen=True)
class ViewOptions:
    """What `run` prints.

    Attributes:
        as_json: JSON lines, otherwise text.
        is_verbose: whether people see frames and evictions too.
        has_tokens: whether JSON has a line for each token too.
    """

    as_json: bool = False
    is_verbose: bool = False
    has_tokens: bool = False


def show_stream(
    session: Session,
    source: Source,
    queries: Sequence[Query],
    views: Sequence["StreamView"],
    requests: StandardInput | None = None,
) -> None:
    """Stream `source` until it ends or Ctrl-C; every view shows the events, then the summary.

    Args:
        session: not used before.
        source: an open source.
        queries: see `Session.stream`.
        views: entered here.
        requests: entered here; None leaves standard input alone.

    Raises:
        ModEdgeError: the source failed or a text did not fit; raised after the summary if any frame
            was processed.
    """
    with ExitStack() as opened:
        for view in views:
            opened.enter_context(view)
        if requests is not None:
            opened.enter_context(requests)

        def show(event: Event) -> None:
            for view in views:
                view.show(event)

        def finish() -> None:
            summary = session.summary()
            for view in views:
                view.finish(summary)

        events = with_faults(_with_failure(session, source, queries), requests, session)
        show_events(events, show, finish, has_begun=lambda: session.summary().num_frames > 0)


def show_streams(
    streams: Streams,
    sources: Mapping[str, Source],
    queries: Sequence[Query],
    views_of: Callable[[str, Session], Sequence["StreamView"]],
    requests: StandardInput | None = None,
) -> None:
    """Stream all `sources`, by the streams' names, until they end or Ctrl-C.

    Args:
        streams: with room for all of them.
        sources: by the names of their streams.
        queries: asked in each stream.
        views_of: makes the views of one stream; each shows its events, then its summary.
        requests: entered here; None leaves standard input alone.

    Raises:
        ModEdgeError: sources failed, or a text did not fit; raised after the summaries of the
            streams that have processed any frame.
    """
    sessions = {name: streams.add(name, source, queries) for name, source in sources.items()}
    with ExitStack() as opened:
        views = {
            name: [opened.enter_context(view) for view in views_of(name, session)]
            for name, session in sessions.items()
        }

        if requests is not None:
            opened.enter_context(requests)

        def show(name: str, event: Event) -> None:
            for view in views[name]:
                view.show(event)

        def finish(name: str, summary: Summary) -> None:
            del sessions[name]
            for view in views[name]:
                view.finish(summary)

        def show_faults(name: str, time_s: float) -> None:
            for fault in requests.faults(time_s) if requests else ():
                show(name, sessions[name].stamped(fault))

        try:
            for name, event in streams.events():
                if requests is not None:
                    requests.start(sessions)  # as with one stream, not before there is an event
                show_faults(name, event.time_s)
                if isinstance(event, Summary):
                    finish(name, event)
                else:
                    show(name, event)
        except KeyboardInterrupt:
            pass
        finally:
            for live in filter(None, map(as_live, sources.values())):
                live.end()  # all at once: closing each then waits for its last read
            for name, session in list(sessions.items()):
                summary = session.summary()
                show_faults(name, summary.time_s)  # the first stream shows them all
                if summary.num_frames:
                    finish(name, summary)


def _with_failure(session: Session, source: Source, queries: Sequence[Query]) -> Iterator[Event]:
    """The events of one stream; a failure of its source is the last one, then the error."""
    try:
        yield from session.stream(source, queries)
    except SourceError as exc:
        yield session.failure(exc)
        raise


def show_events(
    events: Iterable[Event],
    show: Callable[[Event], None],
    finish: Callable[[], None],
    *,
    has_begun: Callable[[], bool],
) -> None:
    """Show events until their end or Ctrl-C, then the summary.

    Args:
        events: of a session.
        show: shows one event.
        finish: shows the summary.
        has_begun: whether an error is raised after the summary: a camera may fail after hours.
    """
    try:
        for event in events:
            show(event)
    except KeyboardInterrupt:
        pass  # the usual way to end a camera's stream
    except ModEdgeError:
        if has_begun():
            finish()
        raise
    finish()


def screen_view(
    session: Session, options: ViewOptions, requests: StandardInput | None = None
) -> "StreamView":
    """The view for stdout: JSON lines, or for people live on a terminal and else plain lines.

    Args:
        session: of the stream.
        options: what it shows.
        requests: whose keys a live view draws.
    """
    if options.as_json:
        return JsonView(session, has_tokens=options.has_tokens)
    if can_redraw(out):
        return LiveView(session, is_verbose=options.is_verbose, area=LiveArea(requests))
    return PlainView(session, is_verbose=options.is_verbose)


def screen_views(
    streams: Streams, options: ViewOptions, requests: StandardInput | None = None
) -> Callable[[str, Session], "StreamView"]:
    """Makes the view for stdout of each of several streams, by name; see `screen_view`."""
    is_verbose = options.is_verbose
    if options.as_json:
        return lambda name, session: JsonView(session, stream=name, has_tokens=options.has_tokens)
    _print_header(streams)
    if can_redraw(out):
        area = LiveArea(requests)
        return lambda name, session: LiveView(
            session, is_verbose=is_verbose, stream=name, area=area
        )
    return lambda name, session: PlainView(session, is_verbose=is_verbose, stream=name)


class StreamView(ABC):
    """Shows events as they come; a context manager.

    Args:
        session: of the stream.
        stream: its name; empty if it is the only one.
    """

    def __init__(self, session: Session, *, stream: str = "") -> None:
        self.session = session
        self.stream = stream

    @abstractmethod
    def show(self, event: Event) -> None:
        """Show one event."""

    @abstractmethod
    def finish(self, summary: Summary) -> None:
        """Show the summary at the end."""

    def document(self, event: Event) -> dict[str, Any]:
        """The event as one JSON object; with the name of its stream if there are several."""
        name = stream_of(event, self.stream)
        return ({"stream": name} if name else {}) | event.to_json()

    def __enter__(self) -> "StreamView":
        return self

    def __exit__(self, *_exc: object) -> None:
        return None


class JsonView(StreamView):
    """One JSON object per line on stdout; a reply is one line, or with `has_tokens` one a token."""

    def __init__(self, session: Session, *, stream: str = "", has_tokens: bool = False) -> None:
        super().__init__(session, stream=stream)
        self._has_tokens = has_tokens

    def show(self, event: Event) -> None:
        if self._has_tokens or not isinstance(event, TextEvent):
            print_json(self.document(event))

    def finish(self, summary: Summary) -> None:
        print_json(self.document(summary))


class PlainView(StreamView):
    """One line per query and reply; if `is_verbose`, per frame and eviction too."""

    def __init__(self, session: Session, *, is_verbose: bool, stream: str = "") -> None:
        super().__init__(session, stream=stream)
        self._is_verbose = is_verbose
        if not stream:
            _print_header(session)

    def show(self, event: Event) -> None:
        if _is_shown(event, self._is_verbose, self.stream):
            out.print(_line(event, self.stream))

    def finish(self, summary: Summary) -> None:
        _print_summary(summary, self.stream)


class LiveArea:
    """The last lines of a terminal, which live views share and redraw; there while any is joined.

    They are drawn four times a second, not at every event: drawing costs more than a small model.

    Args:
        requests: whose keys are drawn below the views' lines.
    """

    def __init__(self, requests: StandardInput | None = None) -> None:
        self._views: list[LiveView] = []
        self._requests = requests
        self._live = Live(get_renderable=self._render, console=out, transient=True)  # renders once
        if requests is not None:
            requests.draw_keys(self._live.refresh)

    def join(self, view: "LiveView") -> None:
        """Draw the view's lines too."""
        self._views.append(view)
        self._live.start()

    def leave(self, view: "LiveView") -> None:
        """Draw the view's lines no more."""
        if view in self._views:
            self._views.remove(view)
        if not self._views:
            self._live.stop()

    def print(self, line: Text) -> None:
        """Print a line above the area."""
        self._live.console.print(line)

    def refresh(self) -> None:
        """Draw now."""
        self._live.refresh()

    def _render(self) -> Group:
        return Group(*(view.render() for view in self._views), *self._typed())

    def _typed(self) -> list[Text]:
        """The line below the status: what is being typed, or what may be."""
        text = None if self._requests is None else self._requests.typed_text
        if text is None:
            return []
        if not text:
            return [Text.assemble(("> ", "bold"), (" ", "reverse"), (TYPING_HINT, "dim"))]
        return [Text.assemble(("> ", "bold"), text, (" ", "reverse"))]


class LiveView(StreamView):
    """Queries and replies scroll above the reply in progress and a status line."""

    def __init__(
        self,
        session: Session,
        *,
        is_verbose: bool,
        stream: str = "",
        area: LiveArea | None = None,
    ) -> None:
        super().__init__(session, stream=stream)
        self._is_verbose = is_verbose
        self._spoken = ""
        self._decision = Decision.SILENT
        self._area = area or LiveArea()
        if not stream:
            _print_header(session)

    def __enter__(self) -> "LiveView":
        self._area.join(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self._area.leave(self)

    def show(self, event: Event) -> None:
        if isinstance(event, FrameEvent):
            self._decision = event.decision
        elif isinstance(event, TextEvent):
            self._spoken += event.text
        if _is_shown(event, self._is_verbose, self.stream):
            self._area.print(_line(event, self.stream))
        if isinstance(event, ReplyEvent):
            self._spoken = ""
            self._area.refresh()

    def finish(self, summary: Summary) -> None:
        self._area.leave(self)
        _print_summary(summary, self.stream)

    def render(self) -> Group:
        """The lines to redraw."""
        summary = self.session.summary()
        status = Text.assemble(
            *_stream_prefix(self.stream),
            (f"{_clock(summary.time_s)} ", "bold"),
            (f"{self._decision.value:<9} ", DECISION_STYLES[self._decision]),
            f"{summary.fps:5.1f} fps  letterbox {times(summary.letterbox_ms)}  "
            f"vision {times(summary.vision_ms)}  "
            f"decoder {times(summary.decoder_ms)} ms p50/p95  "
            f"cache {summary.cache_fill:4.0%}  dropped {summary.num_dropped}"
            f"{age_status(summary)}",
        )
        speech = [Text(printable(self._spoken), style="green")] if self._spoken else []
        return Group(*speech, status)


def stream_of(event: Event, stream: str) -> str:
    """The name of the stream in an event's line: `stream`, but a bad line is of no stream."""
    return "" if isinstance(event, BadLineEvent) else stream


def _print_header(opened: Session | Streams) -> None:
    plan = opened.plan
    err.print(f"backend {opened.backend}")
    err.print(
        f"window {plan.capacity.dense} tokens ({plan.capacity.mod} rows in MoD layers), "
        f"{plan.size_bytes / 2**20:.1f} MiB: {plan.num_seconds:g} s of video, "
        f"{plan.num_seconds_full:g} s for a full-computation model"
    )


def _is_shown(event: Event, is_verbose: bool, stream: str) -> bool:
    """Whether the event is printed as a line."""
    if isinstance(event, (FrameEvent, RollEvent)):
        return is_verbose
    if isinstance(event, FailureEvent):
        return bool(stream)  # a failure of the only stream is the command's error
    shown = (
        *(QueryEvent, InstructionEvent, ThresholdEvent, BadLineEvent, ReplyEvent),
        *SOURCE_EVENTS,
    )
    return isinstance(event, shown)


def _stream_prefix(stream: str) -> list[tuple[str, str]]:
    """The parts of a line before its time; none if there is only one stream."""
    return [(f"{printable(stream)} ", "cyan")] if stream else []


def _line(event: Event, stream: str = "") -> Text:
    return Text.assemble(*_stream_prefix(stream_of(event, stream)), *_line_parts(event))


def _line_parts(event: Event) -> list[str | tuple[str, str]]:
    clock = (f"{_clock(event.time_s)} ", "bold")
    if isinstance(event, QueryEvent):
        return [clock, ("query     ", "cyan"), printable(event.query)]
    if isinstance(event, InstructionEvent):
        text = f"{printable(event.instruction)} (never evicted from now on)"
        return [clock, ("instruct  ", "cyan"), text]
    if isinstance(event, ThresholdEvent):
        return [clock, ("threshold ", "cyan"), f"{event.threshold:g}"]
    if isinstance(event, BadLineEvent):
        text = f"line {event.line_number}: {printable(event.message)}"
        return [clock, ("bad line  ", "yellow"), text]
    if isinstance(event, ReplyEvent):
        text = printable(event.text) or "(empty)"
        cut = " ..." if event.is_cut else ""
        return [clock, ("reply     ", "green"), text, (cut, "dim")]
    if isinstance(event, FailureEvent):
        return [clock, ("failure   ", "bold red"), printable(event.message)]
    if isinstance(event, FrameEvent):
        times = (
            f"letterbox {event.letterbox_ms:.1f} ms, vision {event.vision_ms:.1f} ms, "
            f"decoder {event.decoder_ms:.1f} ms"
        )
        decision = (f"{event.decision.value:<9} ", DECISION_STYLES[event.decision])
        return [clock, decision, f"frame {event.index}, {times}"]
    if isinstance(event, RollEvent):
        return [clock, *roll_line(event)]
    return [clock, *source_line(event)]


def roll_line(event: RollEvent) -> tuple[tuple[str, str], str]:
    """The parts of a line about an eviction, after its time."""
    evicted = f"{event.num_dropped_tokens} tokens evicted in {event.roll_ms:.1f} ms"
    return ("roll      ", "magenta"), evicted


def _print_summary(summary: Summary, stream: str = "") -> None:
    if stream:
        out.print(printable(stream), style="bold cyan")
    decisions = ", ".join(f"{count} {name}" for name, count in summary.decisions.items())
    rows = [
        ("frames", f"{summary.num_frames} ({decisions}), {summary.num_dropped} dropped"),
        replies_row(summary),
        ("speed", f"{summary.fps:.1f} frames/s over {summary.wall_s:.1f} s"),
        *live_rows(summary),
        ("letterbox", f"{times(summary.letterbox_ms)} ms per frame, p50/p95"),
        ("vision", f"{times(summary.vision_ms)} ms per frame, p50/p95"),
        ("decoder", f"{times(summary.decoder_ms)} ms per frame, p50/p95"),
        cache_row(summary),
    ]
    print_pairs(rows)
    for warning in summary.warnings:
        print_warning(warning)


def replies_row(summary: Summary | TextSummary) -> tuple[str, str]:
    """The row of a summary about the replies."""
    return "replies", f"{summary.num_replies} with {summary.num_reply_tokens} tokens"


def cache_row(summary: Summary | TextSummary) -> tuple[str, str]:
    """The row of a summary about the KV cache."""
    return (
        "cache",
        f"{summary.cache_fill:.0%} full, {summary.num_evicted} of {summary.num_tokens} tokens "
        f"evicted in {summary.num_rolls} rolls",
    )


def times(percentiles: dict[str, float]) -> str:
    """Two milliseconds figures, p50/p95."""
    return f"{percentiles['p50']:.1f}/{percentiles['p95']:.1f}"


def _clock(time_s: float) -> str:
    minutes, seconds = divmod(round(time_s, 1), 60)
    return f"{int(minutes):3d}:{seconds:04.1f}"
