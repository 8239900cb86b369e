"""Queries: text and time, split at the last @ that a number of seconds follows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mod_edge.errors import ConfigError
from mod_edge.runtime.queries import Query, parse_query


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("What happens?", Query("What happens?", 0.0)),
        ("What happens?@12.5", Query("What happens?", 12.5)),
        ("What happens? @ 12", Query("What happens?", 12.0)),
        ("now@0", Query("now", 0.0)),
        ("a@b", Query("a@b")),
        ("a@b@3", Query("a@b", 3.0)),
        ("a@3@b", Query("a@3@b")),
        ("a@1@2", Query("a@1", 2.0)),
        ("mail me@3.5", Query("mail me", 3.5)),
        ("mail me@example.com", Query("mail me@example.com")),
        ("soon@1e3", Query("soon", 1000.0)),
        ("soon@1.5E-1 ", Query("soon", 0.15)),
        ("soon@2e+1", Query("soon", 20.0)),
        ("soon@.5", Query("soon", 0.5)),
        ("soon@3.", Query("soon", 3.0)),
        ("soon@007", Query("soon", 7.0)),
        ("back@-3@0", Query("back@-3")),
        ("back@", Query("back@")),
        ("mail a@b.c@12, then", Query("mail a@b.c@12, then")),
        ("react@18.2.0", Query("react@18.2.0")),
        ("bob@3com.com", Query("bob@3com.com")),
        ("lunch@5pm", Query("lunch@5pm")),
        ("a@.", Query("a@.")),
        ("a@e5", Query("a@e5")),
        ("never@inf", Query("never@inf")),
        ("two\nlines@7", Query("two\nlines", 7.0)),
        ("Was läuft, 何@2", Query("Was läuft, 何", 2.0)),
        ("  What  happens ?", Query("  What  happens ?")),
    ],
)
def test_only_a_number_of_seconds_after_the_last_at_is_a_time(text, query):
    assert parse_query(text) == query


@pytest.mark.parametrize("text", ["", " ", "\n", "@5", "  @ 5.5"])
def test_a_query_without_text_is_an_error(text):
    with pytest.raises(ConfigError, match="a query is empty; write some text"):
        parse_query(text)


@pytest.mark.parametrize(
    "end",
    [
        *("-1", "-.5", "- 2", "+3", "\N{MINUS SIGN}4", "-1e5"),
        *("1:30", "0:01:30", "1:30.5", "1,5", ",5", "5s", "5 s", "1.5 Seconds", "2 min", "200ms"),
        *(
            "\N{ARABIC-INDIC DIGIT THREE}",
            "\N{FULLWIDTH DIGIT ONE}.5",
        ),  # digits, but of another script
    ],
)
def test_what_only_looks_like_a_time_is_an_error(end):
    with pytest.raises(ConfigError, match=r"^the query 'x@.*, wanted a number of seconds, 0 or"):
        parse_query(f"x@{end}")
    assert parse_query(f"x@{end}@0") == Query(f"x@{end}")


@pytest.mark.parametrize("time_s", [-1.0, -1e-9, float("inf"), float("nan")])
def test_a_time_that_no_video_has_is_an_error(time_s):
    with pytest.raises(ConfigError, match=r"the query 'x' is at .* s of video, wanted 0 or later"):
        Query("x", time_s)


def test_a_time_too_large_for_a_number_is_an_error():
    with pytest.raises(ConfigError, match="is at inf s of video"):
        parse_query("x@1e999")


@given(st.text().filter(str.strip), st.floats(0, 1e12))
def test_any_text_with_any_time_is_that_text_at_that_time(text, time_s):
    query = parse_query(f"{text}@{time_s!r}")
    assert query == Query(text.rstrip(), time_s)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("caf\udce9", r"'caf\\udce9' is not Unicode text: character 4 is byte 0xE9; .*UTF-8"),
        ("\ud83d?@3", r"character 1 is half a character, U\+D83D"),
    ],
)
def test_a_query_with_half_a_character_is_an_error_that_names_it(text, says):
    with pytest.raises(ConfigError, match=says):
        parse_query(text)
