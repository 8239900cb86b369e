"""The thread that reads requests: lines in pieces, too long, not UTF-8, and the end."""

import os
import pty
import queue
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from mod_edge.commands import standard_input
from mod_edge.commands.standard_input import StandardInput, with_faults
from mod_edge.commands.stream_view import JsonView, PlainView, show_streams
from mod_edge.runtime.events import BadLineEvent, Event, ThresholdEvent

TIMEOUT_S = 20


class Listening:
    """A session that notes what it is asked; `next_call` waits for it."""

    def __init__(self):
        self.calls = queue.SimpleQueue()

    def __getattr__(self, name):
        return lambda *values: self.calls.put((name, *values))

    def stamped(self, event):
        return replace(event, at="2026-01-01T00:00:00Z")

    def next_call(self):
        return self.calls.get(timeout=TIMEOUT_S)


@pytest.fixture
def pipe():
    """A session, its requests from a pipe, and the pipe's other end to write to."""
    ours, theirs = os.pipe()
    session = Listening()
    with os.fdopen(theirs, "wb", buffering=0) as written:
        with StandardInput(descriptor=ours) as requests:
            requests.start({"": session})
            yield session, requests, written
        os.close(ours)


def test_a_terminal_has_typed_lines_and_may_have_json():
    keys, ours = pty.openpty()
    session = Listening()
    with StandardInput(descriptor=ours) as requests:
        requests.start({"": session})
        os.write(keys, b'What happens?\n/cut\n{"threshold": 0.5}\n')
        assert [session.next_call() for _ in range(3)] == [
            ("ask", "What happens?"),
            ("cut_reply",),
            ("set_threshold", 0.5),
        ]
    os.close(ours)
    os.close(keys)


def test_a_line_may_come_in_pieces_and_several_at_once(pipe):
    session, _, written = pipe
    for data in (b'{"que', b'ry": "a\\u00e9?"}\n\n{"query": "b"}\r\n{"cut": ', b"true}\n"):
        written.write(data)
    assert [session.next_call() for _ in range(3)] == [
        ("ask", "a\u00e9?"),
        ("ask", "b"),
        ("cut_reply",),
    ]


def test_the_last_line_needs_no_line_break_and_the_end_ends_nothing(pipe):
    session, requests, written = pipe
    written.write(b'{"query": "a"}')
    written.close()
    assert session.next_call() == ("ask", "a")
    assert list(with_faults([Event(2.0)], requests, session)) == [Event(2.0)]


def test_a_bad_line_is_told_with_its_number_and_the_next_one_is_followed(pipe):
    session, requests, written = pipe
    written.write(b'\n{"query": "\xff"}\nnonsense\n{"stop": true}\n')
    assert session.next_call() == ("ask", "\udcff")  # which a session refuses
    assert session.next_call() == ("stop",)
    (fault,) = requests.faults(1.5)
    assert isinstance(fault, BadLineEvent)
    assert (fault.time_s, fault.line_number) == (1.5, 3)
    assert fault.message.startswith("'nonsense' is not JSON")


def test_a_bad_line_has_the_time_of_day_of_its_stream(pipe):
    session, requests, written = pipe
    written.write(b'nonsense\n{"cut": true}\n')
    session.next_call()
    _, fault = with_faults([Event(2.0)], requests, session)
    assert (fault.line_number, fault.at) == (1, "2026-01-01T00:00:00Z")


class Interrupted:
    """Two streams, of which one gives an event; then Ctrl-C."""

    def __init__(self, session, requests):
        self.session, self.requests = session, requests

    def add(self, *_stream):
        return self.session

    def events(self):
        yield "a", Event(2.0)
        self.requests._faults.append((7, "nonsense"))
        raise KeyboardInterrupt


class Quiet(Listening):
    """A session that has seen no frame, so that it has no summary to show."""

    time_s, num_frames = 2.0, 0

    def summary(self):
        return self


class Kept:
    """A view that keeps what it is shown."""

    def __init__(self, shown):
        self.shown = shown

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        pass

    def show(self, event):
        self.shown.append(event)


def test_a_bad_line_after_the_last_event_of_several_streams_is_told_with_its_time_of_day():
    ours, theirs = os.pipe()
    requests, shown = StandardInput(descriptor=ours), []
    streams = Interrupted(Quiet(), requests)
    sources = {name: SimpleNamespace(is_live=False) for name in "ab"}
    show_streams(streams, sources, [], lambda *_: [Kept(shown)], requests)
    _, fault = shown
    assert (fault.line_number, fault.time_s, fault.at) == (7, 2.0, "2026-01-01T00:00:00Z")
    os.close(ours)
    os.close(theirs)


def test_a_bad_line_has_the_name_of_no_stream(capsys):
    for view_type in (JsonView, partial(PlainView, is_verbose=False)):
        view = view_type(None, stream="door")
        view.show(BadLineEvent(2.0, 7, "nonsense"))
        view.show(ThresholdEvent(2.0, 0.5))
        bad, other = capsys.readouterr().out.splitlines()
        assert "door" not in bad
        assert "door" in other


class Told:
    """Two streams with an event each; notes whether requests were read before the first one."""

    def __init__(self, requests):
        self.requests, self.is_early = requests, False

    def add(self, *_stream):
        return Quiet()

    def events(self):
        self.is_early = self.requests._thread is not None
        yield "a", Event(0.0)
        yield "b", Event(0.0)


def test_requests_to_several_streams_are_read_from_the_first_event_on():
    ours, theirs = os.pipe()
    requests = StandardInput(descriptor=ours)
    streams = Told(requests)
    sources = {name: SimpleNamespace(is_live=False) for name in "ab"}
    show_streams(streams, sources, [], lambda *_: [Kept([])], requests)
    assert not streams.is_early
    assert requests._thread is not None
    os.close(ours)
    os.close(theirs)


def test_a_line_without_an_end_fills_no_memory_and_is_told_once(pipe, monkeypatch):
    session, requests, written = pipe
    monkeypatch.setattr(standard_input, "MAX_LINE_BYTES", 100)
    for _ in range(50):
        written.write(b"x" * 1000)
    written.write(b'\n{"cut": true}\n')
    assert session.next_call() == ("cut_reply",)
    assert len(requests._partial) <= 101
    (fault,) = requests.faults(1.5)
    assert (fault.line_number, fault.message) == (
        1,
        "the line has more than 100 bytes, wanted at most that; shorten it",
    )


def test_bad_lines_that_wait_for_an_event_fill_no_memory():
    ours, theirs = os.pipe()
    os.write(theirs, b"nonsense\n" * (standard_input.MAX_FAULTS + 5) + b'{"cut": true}\n')
    session = Listening()
    with StandardInput(descriptor=ours) as requests:
        requests.start({"": session})
        session.next_call()
        faults = list(requests.faults(0.0))
    assert (len(faults), faults[-1].line_number) == (1000, 1005)
    os.close(ours)
    os.close(theirs)


def test_an_open_pipe_without_lines_does_not_hold_up_the_end():
    ours, theirs = os.pipe()
    with StandardInput(descriptor=ours) as requests:
        requests.start({})
    assert not requests._thread.is_alive()
    os.close(ours)
    os.close(theirs)
