"""Queries: text and time, split at the last @ that a number follows."""

import pytest

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
        ("back@-3", Query("back@-3")),
        ("soon@1e3", Query("soon@1e3")),
        ("never@inf", Query("never@inf")),
        ("two\nlines@7", Query("two\nlines", 7.0)),
        ("Was läuft, 何@2", Query("Was läuft, 何", 2.0)),
        ("  What  happens ?", Query("  What  happens ?")),
    ],
)
def test_only_a_number_after_the_last_at_is_a_time(text, query):
    assert parse_query(text) == query


@pytest.mark.parametrize("text", ["", " ", "\n", "@5", "  @ 5.5"])
def test_a_query_without_text_is_an_error(text):
    with pytest.raises(ConfigError, match="a query is empty; write some text"):
        parse_query(text)
