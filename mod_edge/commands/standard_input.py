"""Requests to a running stream from standard input: on a terminal as typed, otherwise JSON lines.

A thread reads, so that a line is heard while the model computes. Standard input that is neither a
terminal nor asked for with --stdin is never read: a service has the null device there.
"""

import os
import select
import sys
import termios
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any

from mod_edge.commands.typed_line import TypedLine, unechoed
from mod_edge.errors import ConfigError
from mod_edge.runtime.events import BadLineEvent, Event
from mod_edge.runtime.requests import (
    put_request,
    request_from_json,
    request_from_typed,
)
from mod_edge.runtime.session import Session

# A longer line is no request: what never ends in a line break must not fill the memory.
MAX_LINE_BYTES = 65_536
CHUNK_BYTES = 65_536
# Of the lines that were no requests, while no event comes to tell them with.
MAX_FAULTS = 1000
# How often a terminal is looked at, which may belong to another job for a while.
TERMINAL_POLL_S = 0.5


class StandardInput(AbstractContextManager["StandardInput"]):
    """Reads requests on a thread and puts them to sessions; ends at the end of the input."""

    def __init__(self, *, descriptor: int = 0) -> None:
        """Nothing is read before `start`.

        Args:
            descriptor: of the input, open for reading.
        """
        self._sessions: Mapping[str, Session] = {}
        self._descriptor = descriptor
        self._is_terminal = os.isatty(descriptor)
        self._parse = request_from_typed if self._is_terminal else request_from_json
        self._faults = deque[tuple[int, str]](maxlen=MAX_FAULTS)
        self._num_lines = 0
        self._partial = b""
        self._typed: TypedLine | None = None
        self._on_key: Callable[[], None] = lambda: None
        self._saved: list[Any] | None = None
        self._wake_read, self._wake_write = os.pipe()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "StandardInput":
        if self._typed is not None and self._is_foreground():
            with suppress(termios.error):  # the terminal is gone
                unechoed(self._descriptor)  # keys wait in it until `start`
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self._wake_write)  # the thread sees the end of the pipe
        if self._thread is not None:
            self._thread.join()
        os.close(self._wake_read)
        if self._saved is not None and self._is_foreground():
            with suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._saved)

    @property
    def typed_text(self) -> str | None:
        """The line that is being typed; None if the terminal shows it itself."""
        return None if self._typed is None else self._typed.text

    def draw_keys(self, on_key: Callable[[], None]) -> None:
        """Collect the keys of a terminal here instead of in the terminal; call it before `start`.

        Args:
            on_key: called on the reading thread after every key, to draw `typed_text`.
        """
        with suppress(termios.error):  # without it the terminal is left as it is
            self._saved = termios.tcgetattr(self._descriptor)
            self._typed = TypedLine(self._take_line, self._cut_replies)
            self._on_key = on_key

    def start(self, sessions: Mapping[str, Session]) -> None:
        """Start to read, once.

        Args:
            sessions: that stream, by name; those that have ended may be removed from it.
        """
        if self._thread is None:
            self._sessions = sessions
            self._thread = threading.Thread(target=self._read, name="standard-input", daemon=True)
            self._thread.start()

    def faults(self, time_s: float) -> Iterator[BadLineEvent]:
        """The lines since the last call that were no requests, as events at `time_s`.

        Of more than `MAX_FAULTS` lines the last ones.
        """
        while self._faults:
            yield BadLineEvent(time_s, *self._faults.popleft())

    def _read(self) -> None:
        timeout_s = TERMINAL_POLL_S if self._is_terminal else None
        while True:
            # A job in the background that touches its terminal is stopped.
            is_ours = not self._is_terminal or self._is_foreground()
            waited_for = [self._wake_read, *([self._descriptor] if is_ours else [])]
            try:
                if is_ours and self._typed is not None:
                    unechoed(self._descriptor)  # also after the shell has changed it
                ready = select.select(waited_for, [], [], timeout_s)[0]
                if self._wake_read in ready:
                    return
                data = os.read(self._descriptor, CHUNK_BYTES) if ready else None
            except (OSError, termios.error):  # the terminal is gone, or not open for reading
                return
            if data == b"":
                self._take_rest()
                return
            if data:
                self._take(data)

    def _take(self, data: bytes) -> None:
        if self._typed is not None:
            self._typed.feed(data)
            self._on_key()
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._take_line(line.decode(errors="surrogateescape"))
        if len(self._partial) > MAX_LINE_BYTES:
            self._partial = self._partial[: MAX_LINE_BYTES + 1]  # the rest of it is dropped

    def _take_rest(self) -> None:
        """A last line without a line break."""
        if self._partial:
            self._take_line(self._partial.decode(errors="surrogateescape"))

    def _take_line(self, line: str) -> None:
        self._num_lines += 1
        if not line.strip():
            return
        try:
            if len(line) > MAX_LINE_BYTES:
                raise ConfigError(
                    f"the line has more than {MAX_LINE_BYTES} bytes, wanted at most that; shorten "
                    "it"
                )
            put_request(self._parse(line), self._sessions)
        except ConfigError as exc:
            self._faults.append((self._num_lines, str(exc)))

    def _cut_replies(self) -> None:
        for session in list(self._sessions.values()):
            session.cut_reply()

    def _is_foreground(self) -> bool:
        """Whether this process may use the terminal; it may not in a background job."""
        try:
            return os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except OSError:  # not this process's terminal
            return True


def standard_input(*, as_json: bool, is_asked_for: bool) -> StandardInput | None:
    """The requests of a `run`, or None if standard input is left alone.

    Args:
        as_json: whether the output is JSON lines.
        is_asked_for: whether --stdin was given.
    """
    # Without a terminal for the output, a pager may read the keys.
    is_typed_to = not as_json and sys.stdin.isatty() and sys.stdout.isatty()
    return StandardInput() if is_asked_for or is_typed_to else None


def with_faults(
    events: Iterable[Event], requests: StandardInput | None, session: Session
) -> Iterator[Event]:
    """The events of one stream, and one for every line that was no request; starts to read."""
    if requests is None:
        yield from events
        return
    time_s = 0.0

    def faults() -> Iterator[Event]:
        return map(session.stamped, requests.faults(time_s))

    for event in events:
        requests.start({"": session})  # not before: a session refuses requests until it streams
        yield event
        time_s = event.time_s
        yield from faults()
    yield from faults()
