"""How `mod-edge run` shows a conversation of text alone: token by token, or as JSON lines."""

from collections.abc import Sequence

from rich.text import Text

from mod_edge.commands.console import (
    err,
    out,
    print_json,
    print_pairs,
    print_warning,
    printable,
)
from mod_edge.commands.stream_view import (
    ViewOptions,
    cache_row,
    replies_row,
    roll_line,
    show_events,
    times,
)
from mod_edge.runtime.events import (
    Event,
    QueryEvent,
    ReplyEvent,
    RollEvent,
    TextEvent,
    TextSummary,
)
from mod_edge.runtime.text_session import TextSession


def show_conversation(session: TextSession, queries: Sequence[str], options: ViewOptions) -> None:
    """Reply to `queries` until the last one or Ctrl-C, then show the summary.

    Raises:
        ModEdgeError: a query does not fit, or the backend failed.
    """
    view = (
        JsonTextView(has_tokens=options.has_tokens)
        if options.as_json
        else PlainTextView(session, is_verbose=options.is_verbose)
    )
    show_events(
        session.converse(queries),
        view.show,
        finish=lambda: view.finish(session.summary()),
        has_begun=lambda: session.summary().num_tokens > 0,
    )


class JsonTextView:
    """One JSON object per line on stdout; with `has_tokens` one for each token too."""

    def __init__(self, *, has_tokens: bool) -> None:
        self._has_tokens = has_tokens

    def show(self, event: Event) -> None:
        """Print one event."""
        if self._has_tokens or not isinstance(event, TextEvent):
            print_json(event.to_json())

    def finish(self, summary: TextSummary) -> None:
        """Print the summary."""
        print_json(summary.to_json())


class PlainTextView:
    """Each query and, token by token, its reply; if `is_verbose`, evictions too."""

    def __init__(self, session: TextSession, *, is_verbose: bool) -> None:
        self._is_verbose = is_verbose
        self._rolls: list[RollEvent] = []  # shown after the reply in progress
        self._has_begun = False  # whether the reply in progress has a visible character
        self._spaces = ""  # blanks and line breaks are printed when text follows them
        self._is_replying = False
        _print_header(session)

    def show(self, event: Event) -> None:
        """Print one event."""
        if isinstance(event, QueryEvent):
            out.print("query     ", style="cyan", end="")
            out.print(printable(event.query))
            out.print("reply     ", style="green", end="")
            self._is_replying, self._has_begun, self._spaces = True, False, ""
        elif isinstance(event, TextEvent):
            self._print_piece(event.text)
        elif isinstance(event, RollEvent) and self._is_verbose:
            self._rolls.append(event)
        elif isinstance(event, ReplyEvent):
            self._end_reply(" ..." if event.is_cut else "")

    def finish(self, summary: TextSummary) -> None:
        """Print the summary."""
        if self._is_replying:  # Ctrl-C
            self._end_reply(" ...")
        first = times(summary.first_token_ms)
        speed = f"{summary.tokens_per_s:.1f} tokens/s, first token after {first} ms, p50/p95"
        rows = [replies_row(summary), ("speed", speed), cache_row(summary)]
        print_pairs(rows)
        for warning in summary.warnings:
            print_warning(warning)

    def _print_piece(self, piece: str) -> None:
        text = self._spaces + piece
        visible = text.rstrip()
        self._spaces = text[len(visible) :] if self._has_begun or visible else ""
        if not self._has_begun:
            visible = visible.lstrip()
        if visible:
            self._has_begun = True
            out.print("\n".join(map(printable, visible.split("\n"))), end="")

    def _end_reply(self, mark: str) -> None:
        out.print("" if self._has_begun else "(empty)", end="")
        out.print(mark, style="dim")
        self._is_replying = False
        for roll in self._rolls:
            out.print(Text.assemble(*roll_line(roll)))
        self._rolls.clear()


def _print_header(session: TextSession) -> None:
    plan = session.plan
    err.print(f"backend {session.backend}")
    err.print(f"window {min(plan.capacity)} tokens of text, {plan.size_bytes / 2**20:.1f} MiB")
