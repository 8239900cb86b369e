"""Requests: every form, and what a wrong one says."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mod_edge.errors import ConfigError, NotStreamingError
from mod_edge.runtime.queries import Query
from mod_edge.runtime.requests import (
    NAMES,
    Request,
    put_request,
    request_from_json,
    request_from_typed,
)


class Listening:
    """Records what is asked of a session."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *values: self.calls.append((name, *values))


def done(request):
    session = Listening()
    request.put_to(session)
    (call,) = session.calls
    return call


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ('{"query": "What happens?"}', ("ask", "What happens?")),
        ('{"query": "What?", "time_s": 12.5}', ("ask", Query("What?", 12.5))),
        (' {"time_s": 3, "query": "a@5"} ', ("ask", Query("a@5", 3))),
        ('{"instruction": "Say when."}', ("instruct", "Say when.")),
        ('{"threshold": 0.8}', ("set_threshold", 0.8)),
        ('{"threshold": 0}', ("set_threshold", 0)),
        ('{"cut": true}', ("cut_reply",)),
        ('{"stop": true}', ("stop",)),
    ],
)
def test_each_json_request_asks_one_thing_of_the_session(line, call):
    assert done(request_from_json(line)) == call


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("What happens? ", ("ask", "What happens?")),
        ("mail a@5", ("ask", "mail a@5")),
        (" /not a command", ("ask", "/not a command")),
        ('{"query": "What?", "time_s": 3}', ("ask", Query("What?", 3))),
        ("/instruction  Say when. ", ("instruct", "Say when.")),
        ("/threshold 0.8", ("set_threshold", 0.8)),
        ("/cut", ("cut_reply",)),
        ("/stop ", ("stop",)),
    ],
)
def test_each_typed_line_asks_one_thing_of_the_session(line, call):
    assert done(request_from_typed(line)) == call


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("What happens?", r"'What happens\?' is not JSON .*; wanted one of {\"query\": TEXT}"),
        ('{"query": "x"', "is not JSON"),
        ("[" * 100_000, r"'\[{60}\.\.\.' is not JSON"),
        ('"query"', "is not a JSON object; wanted one of"),
        ("{}", r"has the keys '\(none\)'; wanted one of"),
        ('{"ask": "x"}', "has the keys 'ask'; wanted one of"),
        ('{"query": "x", "cut": true}', "has the keys 'query, cut'"),
        ('{"instruction": "x", "time_s": 3}', "has the keys 'instruction, time_s'"),
        ('{"query": 5}', "\"query\": '5', wanted a string"),
        ('{"query": "x", "time_s": "soon"}', '"time_s": \'"soon"\', wanted a number of seconds'),
        ('{"query": "x", "time_s": null}', "\"time_s\": 'null', wanted a number of seconds"),
        ('{"cut": true, "stream": 5}', "\"stream\": '5', wanted the name of a stream"),
        ('{"stream": "door"}', "has the keys 'stream'; wanted one of"),
        ('{"query": "x", "time_s": 1' + "0" * 400 + "}", "wanted a number of seconds"),
        ('{"threshold": true}', "\"threshold\": 'true', wanted a number, 0 to 1"),
        ('{"threshold": NaN}', "wanted a number, 0 to 1"),
        ('{"threshold": 1e999}', "wanted a number, 0 to 1"),
        ('{"cut": 1}', "\"cut\": '1', wanted true"),
        ('{"stop": false}', "\"stop\": 'false', wanted true"),
    ],
)
def test_a_wrong_json_request_says_what_was_wanted(line, message):
    with pytest.raises(ConfigError, match=message):
        request_from_json(line)


def test_a_request_is_for_all_streams_or_for_the_one_that_it_names():
    sessions = {"door": Listening(), "yard": Listening()}
    put_request(request_from_json('{"cut": true}'), sessions)
    put_request(request_from_json('{"query": "Who?", "stream": "door"}'), sessions)
    assert sessions["door"].calls == [("cut_reply",), ("ask", "Who?")]
    assert sessions["yard"].calls == [("cut_reply",)]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["door", "yard"], "but the streams are 'door', 'yard'; name one, or omit it for all"),
        ([""], "but there is only one stream, without a name; omit it"),
        ([], "but all streams have ended"),
    ],
    ids=["several", "one", "none"],
)
def test_a_request_to_a_stream_that_is_not_there_says_which_are(names, says):
    sessions = {name: Listening() for name in names}
    with pytest.raises(ConfigError, match=f"^\"stream\": 'gate', {says}$"):
        put_request(Request("cut", True, stream="gate"), sessions)


class Refusing(Listening):
    """Refuses questions with `error`."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def ask(self, _query):
        raise self.error


def test_a_stream_that_has_ended_keeps_a_question_from_no_other_one():
    ended = Refusing(NotStreamingError("not streaming"))
    first, last, question = Listening(), Listening(), Request("query", "Who?")
    put_request(question, {"a": first, "b": ended, "c": last})
    assert first.calls == last.calls == [("ask", "Who?")]
    with pytest.raises(ConfigError, match="not streaming"):
        put_request(question, {"b": ended})


def test_refusals_are_told_once_each_after_every_stream_was_asked():
    full, last = Refusing(ConfigError("does not fit")), Listening()
    with pytest.raises(ConfigError, match=r"^does not fit$"):
        put_request(Request("query", "Who?"), {"a": full, "b": full, "c": last})
    assert last.calls == [("ask", "Who?")]


@pytest.mark.parametrize(
    "line",
    ["/", "/help", "/instruction", "/instruction ", "/threshold", "/threshold high", "/cut now"],
)
def test_a_wrong_typed_command_lists_the_commands(line):
    with pytest.raises(ConfigError, match="is not a command; wanted /instruction TEXT, /thre"):
        request_from_typed(line)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
KEYS = st.sampled_from([*NAMES, "time_s", "stream", "x"])


@given(st.text() | JSON.map(json.dumps) | st.dictionaries(KEYS, JSON).map(json.dumps))
def test_any_line_is_a_request_or_an_error(line):
    for parse in (request_from_json, request_from_typed):
        try:
            request = parse(line)
        except ConfigError:
            continue
        assert isinstance(request, Request)
