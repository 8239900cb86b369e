"""The views of `run`: how each event is shown, and what must never reach the terminal."""

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from mod_edge.commands import console as console_module
from mod_edge.commands import stream_view
from mod_edge.commands.console import out
from mod_edge.errors import ConfigError, SourceError
from mod_edge.plan.kv_budget import KvPlan
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.protocol import Decision
from mod_edge.runtime.events import (
    FailureEvent,
    FrameEvent,
    QueryEvent,
    ReplyEvent,
    RollEvent,
    Summary,
    TextEvent,
)

EVIL = "red \x1b[31m\x1b]0;title\x07 up\x1b[2A back\b\r\n next\x85\u202e\u200b"


def shown(event):
    with out.capture() as captured:
        out.print(stream_view._line(event))
    return captured.get()


@pytest.mark.parametrize(
    "event",
    [
        ReplyEvent(1.0, "q", EVIL, [1], False, 1.0, 1.0),
        ReplyEvent(1.0, None, EVIL, [1], True, 1.0, 1.0),
        QueryEvent(1.0, EVIL, 1.0),
    ],
    ids=["reply", "cut reply", "query"],
)
def test_control_characters_never_reach_the_terminal(event):
    text = shown(event)
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    assert "red" in text
    assert "next" in text


def test_markup_in_a_reply_is_printed_literally():
    text = "[bold]x[/bold] :car: [/]"
    assert text in shown(ReplyEvent(1.0, None, text, [1], False, 1.0, 1.0))


def test_an_empty_reply_is_shown_as_empty():
    line = shown(ReplyEvent(61.25, None, "", [], False, 1.0, 1.0))
    assert line == "  1:01.2 reply     (empty)\n"


@pytest.mark.parametrize(("time_s", "clock"), [(59.94, "0:59.9"), (59.96, "1:00.0")])
def test_a_minute_has_sixty_seconds(time_s, clock):
    assert shown(QueryEvent(time_s, "q", time_s)).split()[0] == clock


def test_json_keeps_control_characters_escaped_on_one_line(capsys):
    view = stream_view.JsonView(session=None)
    view.show(ReplyEvent(1.0, "q", EVIL, [1], False, 1.0, 1.0))
    line = capsys.readouterr().out
    assert line[:-1].isprintable()
    assert json.loads(line)["text"] == EVIL


# ---- the three views ----

TIMES = {"p50": 1.25, "p95": 9.5}
SUMMARY = Summary(
    time_s=1.5,
    num_frames=3,
    decisions={"silent": 1, "speak": 1, "undecided": 0, "asked": 1},
    num_replies=2,
    num_reply_tokens=7,
    num_rolls=1,
    num_tokens=90,
    num_evicted=30,
    num_dropped=4,
    wall_s=1.5,
    fps=2.0,
    letterbox_ms=TIMES,
    vision_ms=TIMES,
    decoder_ms=TIMES,
    cache_fill=0.5,
    warnings=[EVIL],
)
EVENTS = [
    FrameEvent(0.0, 0, Decision.ASKED, 0.25, 1.0, 2.0, 0.1, 0),
    QueryEvent(0.0, EVIL, 0.0),
    TextEvent(0.0, EVIL, 5),
    RollEvent(0.0, 11, 22, 0.5),
    ReplyEvent(0.0, EVIL, EVIL, [5], False, 1.0, 1.0),
    FrameEvent(0.5, 1, Decision.SILENT, 0.25, 1.0, 2.0, 0.1, 0),
]


@pytest.fixture
def session():
    """The part of a session that a view reads."""
    return SimpleNamespace(
        backend="script",
        plan=KvPlan(Rows(1000, 400), 2**20, 60.0, 40.0),
        summary=lambda: SUMMARY,
        failure=lambda error: FailureEvent(1.5, str(error)),
    )


def printed_by(view_class, session, monkeypatch, *, is_verbose=False):
    """What a view prints to stdout and stderr for `EVENTS` and `SUMMARY`."""
    file = io.StringIO()
    is_terminal = view_class is stream_view.LiveView
    console = Console(
        file=file, width=120, force_terminal=is_terminal, color_system=None, soft_wrap=True
    )
    for module in (console_module, stream_view):
        monkeypatch.setattr(module, "out", console)
        monkeypatch.setattr(module, "err", console)
    with view_class(session, is_verbose=is_verbose) as view:
        for event in EVENTS:
            view.show(event)
        view.finish(SUMMARY)
    return file.getvalue()


def test_a_plain_view_shows_queries_and_replies_but_no_frames(session, monkeypatch):
    text = printed_by(stream_view.PlainView, session, monkeypatch)
    lines = text.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("  0:")] == ["query", "reply"]
    assert "frames     3 (1 silent, 1 speak, 0 undecided, 1 asked), 4 dropped" in text
    assert "50% full, 30 of 90 tokens evicted in 1 rolls" in text
    assert lines[-1].startswith("warning: red ")
    assert all(line.isprintable() for line in lines)


def test_a_verbose_view_shows_frames_and_rolls(session, monkeypatch):
    text = printed_by(stream_view.PlainView, session, monkeypatch, is_verbose=True)
    assert "  0:00.5 silent    frame 1, letterbox 0.2 ms, vision 1.0 ms, decoder 2.0 ms" in text
    assert "  0:00.0 roll      11 tokens evicted in 0.5 ms" in text


def test_a_live_view_ends_with_the_conversation_and_the_summary(session, monkeypatch):
    text = printed_by(stream_view.LiveView, session, monkeypatch)
    assert "query     red" in text
    assert "reply     red" in text
    assert "4 dropped" in text
    for words in ("\x1b[31m", "\x1b]0", "\x07", "\u202e"):
        assert words not in text  # the view moves the cursor itself, in other ways


def test_a_live_view_draws_speech_above_the_status(session, monkeypatch):
    monkeypatch.setattr(stream_view, "err", Console(file=io.StringIO()))
    view = stream_view.LiveView(session, is_verbose=False)
    view.show(TextEvent(0.0, EVIL, 5))
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(view.render())
    speech, status = console.file.getvalue().splitlines()
    assert speech.isprintable()
    assert speech.startswith("red")
    assert status.split()[:2] == ["0:01.5", "silent"]
    assert "cache  50%  dropped 4" in status


def test_live_views_of_several_streams_share_the_last_lines_and_name_each_line(
    session, monkeypatch
):
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=True, color_system=None, soft_wrap=True)
    for module in (console_module, stream_view):
        monkeypatch.setattr(module, "out", console)
        monkeypatch.setattr(module, "err", console)
    monkeypatch.setattr(stream_view, "can_redraw", lambda _: True)
    view_of = stream_view.screen_views(session, stream_view.ViewOptions())
    front, back = view_of("front", session), view_of("back", session)
    with front, back:
        front.show(EVENTS[1])
        back.show(FailureEvent(2.0, EVIL))
        area = Console(file=io.StringIO(), width=200, color_system=None)
        area.print(front._area._render())
        assert [line.split()[0] for line in area.file.getvalue().splitlines()] == ["front", "back"]
        front.finish(SUMMARY)
        back.finish(SUMMARY)
    text = file.getvalue()
    assert text.count("backend script") == 1
    assert "front   0:00.0 query     red" in text
    assert "back   0:02.0 failure   red" in text
    assert text.count("frames     3 (") == 2


@pytest.mark.parametrize("columns", [40, 60, 72, 80, 120])
def test_the_status_of_a_narrow_terminal_is_wrapped_between_its_numbers(
    session, monkeypatch, columns
):
    monkeypatch.setattr(stream_view, "err", Console(file=io.StringIO()))
    view = stream_view.LiveView(session, is_verbose=False)
    console = Console(file=io.StringIO(), width=columns, color_system=None)
    console.print(view.render())
    wide = Console(file=io.StringIO(), width=500, color_system=None)
    wide.print(view.render())
    assert console.file.getvalue().split() == wide.file.getvalue().split()


# ---- endings ----


def streaming(events, error):
    """A `stream` method that yields `events` and raises `error`."""

    def stream(_source, _queries):
        yield from events
        raise error

    return stream


def stream_to_screen(session, *, as_json=True):
    view = stream_view.screen_view(session, stream_view.ViewOptions(as_json))
    stream_view.show_stream(session, None, [], [view])


@pytest.mark.parametrize("as_json", [True, False])
def test_a_failing_source_ends_with_its_failure_the_summary_and_the_error(session, capsys, as_json):
    session.stream = streaming(EVENTS, SourceError("camera 0 stopped delivering"))
    with pytest.raises(SourceError, match="stopped delivering"):
        stream_to_screen(session, as_json=as_json)
    lines = capsys.readouterr().out.splitlines()
    if as_json:
        failure, summary = map(json.loads, lines[-2:])
        assert failure["event"] == "failure"
        assert failure["message"] == "camera 0 stopped delivering"
        assert summary["num_frames"] == 3
    else:
        assert not any("failure" in line for line in lines)  # the error says it
        assert lines[-1].startswith("cache")


def test_a_source_that_fails_before_the_first_frame_leaves_its_failure_without_a_summary(
    session, capsys
):
    session.summary = lambda: replace(SUMMARY, num_frames=0)
    session.stream = streaming([], SourceError("camera 0 delivered no frame"))
    with pytest.raises(SourceError):
        stream_to_screen(session)
    (failure,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (failure["event"], failure["message"]) == ("failure", "camera 0 delivered no frame")


def test_an_error_before_the_first_frame_has_no_summary(session, capsys):
    session.summary = lambda: replace(SUMMARY, num_frames=0)
    session.stream = streaming([], ConfigError("the query is too long"))
    with pytest.raises(ConfigError):
        stream_to_screen(session)
    assert capsys.readouterr().out == ""


def test_ctrl_c_is_a_normal_end(session, capsys):
    session.stream = streaming(EVENTS, KeyboardInterrupt())
    stream_to_screen(session)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["event"] == "summary"


def test_every_view_shows_every_event_and_the_end(session):
    class Kept(stream_view.StreamView):
        def __init__(self, session):
            super().__init__(session)
            self.shown, self.is_open = [], False

        def __enter__(self):
            self.is_open = True
            return self

        def __exit__(self, *_exc):
            self.is_open = False

        def show(self, event):
            assert self.is_open
            self.shown.append(event)

        def finish(self, summary):
            self.shown.append(summary)

    session.stream = lambda _source, _queries: iter(EVENTS)
    views = [Kept(session), Kept(session)]
    stream_view.show_stream(session, None, [], views)
    assert [view.shown for view in views] == [[*EVENTS, SUMMARY]] * 2
    assert not any(view.is_open for view in views)
