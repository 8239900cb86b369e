"""The views of a conversation of text alone: token by token, and what must not be printed."""

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from mod_edge.commands import console as console_module
from mod_edge.commands import text_view
from mod_edge.commands.stream_view import ViewOptions
from mod_edge.errors import BackendError, ConfigError
from mod_edge.plan.kv_budget import KvPlan
from mod_edge.plan.kv_window import Rows
from mod_edge.runtime.events import QueryEvent, ReplyEvent, RollEvent, TextEvent, TextSummary
from tests.commands.test_stream_view import EVIL

SUMMARY = TextSummary(
    time_s=1.5,
    num_replies=1,
    num_reply_tokens=3,
    num_rolls=1,
    num_tokens=90,
    num_evicted=30,
    first_token_ms={"p50": 20.0, "p95": 25.04},
    tokens_per_s=12.34,
    cache_fill=0.5,
    warnings=[EVIL],
)
ENDING = [
    "replies  1 with 3 tokens",
    "speed    12.3 tokens/s, first token after 20.0/25.0 ms, p50/p95",
    "cache    50% full, 30 of 90 tokens evicted in 1 rolls",
]


def reply_of(text, *, is_cut=False):
    return ReplyEvent(0.0, "q", text, [1], is_cut, 1.0, 1.0)


def texts(*pieces):
    return [TextEvent(0.0, piece, 5) for piece in pieces]


def session_of(events, *, error=None, num_tokens=90):
    """The part of a session that a view reads; it ends with `error`."""

    def converse(queries):
        assert queries == ["q"]
        yield from events
        if error is not None:
            raise error

    return SimpleNamespace(
        backend="script",
        plan=KvPlan(Rows(1000, 400), 2**20, 0.0, 0.0),
        summary=lambda: replace(SUMMARY, num_tokens=num_tokens),
        converse=converse,
    )


@pytest.fixture
def printed(monkeypatch):
    """`printed(session, is_verbose=False)`: stdout's lines; stderr's are in `printed.err`."""

    def show(session, *, is_verbose=False):
        files = io.StringIO(), io.StringIO()
        for module in (console_module, text_view):
            for name, file in zip(("out", "err"), files, strict=True):
                plain = {"soft_wrap": True, "markup": False, "emoji": False, "highlight": False}
                console = Console(file=file, width=40, color_system=None, **plain)
                monkeypatch.setattr(module, name, console)
        try:
            text_view.show_conversation(session, ["q"], ViewOptions(is_verbose=is_verbose))
        finally:
            show.out, show.err = (file.getvalue().splitlines() for file in files)
        return show.out

    return show


QUERY = QueryEvent(0.0, "q", 0.0)


@pytest.mark.parametrize(
    ("events", "wanted"),
    [
        ([*texts(" Two", "", " words."), reply_of("Two words.")], ["reply     Two words."]),
        ([*texts("\n ", "a ", "\n\n", "b", " \n"), reply_of("")], ["reply     a ", "", "b"]),
        ([*texts("cut", " "), reply_of("cut", is_cut=True)], ["reply     cut ..."]),
        ([reply_of("")], ["reply     (empty)"]),
        ([*texts(" ", "\n"), reply_of("", is_cut=True)], ["reply     (empty) ..."]),
        ([*texts("[bold]x[/] :car:"), reply_of("")], ["reply     [bold]x[/] :car:"]),
    ],
    ids=["words", "lines", "cut", "empty", "blanks", "markup"],
)
def test_a_reply_is_printed_without_blanks_around_it(printed, events, wanted):
    assert printed(session_of([QUERY, *events])) == ["query     q", *wanted, *ENDING]
    assert printed.err[:2] == ["backend script", "window 400 tokens of text, 1.0 MiB"]


def test_each_token_is_printed_when_it_comes(printed):
    seen = []

    def events():
        yield QUERY
        for event in texts("one", " two"):
            yield event
            seen.append(text_view.out.file.getvalue().splitlines()[-1])
        yield reply_of("")

    printed(session_of(events()))
    assert seen == ["reply     one", "reply     one two"]


def test_control_characters_never_reach_the_terminal(printed):
    lines = printed(session_of([QueryEvent(0.0, EVIL, 0.0), *texts(EVIL), reply_of(EVIL)]))
    assert all(line.isprintable() for line in lines)
    assert all(line.isprintable() for line in printed.err)
    assert printed.err[-1].startswith("warning: red ")


def test_evictions_are_shown_after_the_reply_if_verbose(printed):
    events = [QUERY, *texts("a"), RollEvent(0.0, 11, 22, 0.5), *texts("b"), reply_of("ab")]
    lines = printed(session_of(events), is_verbose=True)
    assert lines[1:3] == ["reply     ab", "roll      11 tokens evicted in 0.5 ms"]
    assert not any("roll " in line for line in printed(session_of(events)))


def test_ctrl_c_ends_a_reply_with_the_summary(printed):
    lines = printed(session_of([QUERY, *texts("a")], error=KeyboardInterrupt()))
    assert lines == ["query     q", "reply     a ...", *ENDING]


def test_an_error_within_a_reply_comes_after_the_summary(printed):
    with pytest.raises(BackendError):
        printed(session_of([QUERY, *texts("a")], error=BackendError("gone")))
    assert printed.out == ["query     q", "reply     a ...", *ENDING]


def test_an_error_before_the_first_reply_has_no_summary(printed):
    with pytest.raises(ConfigError):
        printed(session_of([], error=ConfigError("too long"), num_tokens=0))
    assert printed.out == []


def test_json_has_one_object_for_each_event_and_the_summary(capsys):
    events = [QUERY, *texts(EVIL), reply_of(EVIL)]
    options = ViewOptions(as_json=True, has_tokens=True)
    text_view.show_conversation(session_of(events), ["q"], options)
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert all(line.isprintable() for line in lines)
    found = [json.loads(line) for line in lines]
    assert [each["event"] for each in found] == ["query", "text", "reply", "summary"]
    assert found[1]["text"] == found[2]["text"] == EVIL
    assert found[3]["first_token_ms"] == {"p50": 20.0, "p95": 25.04}
    assert found[3]["tokens_per_s"] == 12.34
    assert captured.err == ""


def test_json_has_single_tokens_only_if_asked_for_as_with_a_video(capsys):
    session = session_of([QUERY, *texts("a", "b"), reply_of("ab")])
    text_view.show_conversation(session, ["q"], ViewOptions(as_json=True))
    found = map(json.loads, capsys.readouterr().out.splitlines())
    assert [each["event"] for each in found] == ["query", "reply", "summary"]
