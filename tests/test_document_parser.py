"""JSON and TOML that would stop Python's parsers, or overflow later, are faults of the file."""

import json

import pytest

from mod_edge.document_parser import MAX_DIGITS, MAX_LEVELS, parse_json, parse_toml

PARSERS = pytest.mark.parametrize(
    ("parse", "form"), [(parse_json, '{{"a": {}}}'), (parse_toml, "a = {}")], ids=["json", "toml"]
)


@PARSERS
def test_documents_within_the_limits_are_parsed(parse, form):
    for value in ("[[1, 2.5], []]", '"x"', "true", "9" * MAX_DIGITS, f"-{'9' * MAX_DIGITS}"):
        assert parse(form.format(value)) == {"a": json.loads(value)}
    deepest = "[" * (MAX_LEVELS - 1) + "]" * (MAX_LEVELS - 1)  # in one table
    assert repr(parse(form.format(deepest))["a"]) == deepest


@PARSERS
@pytest.mark.parametrize("num_levels", [MAX_LEVELS, 900, 100_000])
def test_brackets_in_too_many_levels_are_refused(parse, form, num_levels):
    with pytest.raises(ValueError, match="nested in more than 64 levels"):
        parse(form.format("[" * num_levels + "]" * num_levels))


def test_objects_in_too_many_levels_are_refused():
    with pytest.raises(ValueError, match="nested in more than 64 levels"):
        parse_json('{"a":' * 100_000 + "1" + "}" * 100_000)


@PARSERS
@pytest.mark.parametrize("num_digits", [MAX_DIGITS + 1, 400, 5000])
@pytest.mark.parametrize("sign", ["", "-"])
def test_numbers_with_too_many_digits_are_refused(parse, form, num_digits, sign):
    with pytest.raises(ValueError, match=r"it has .*number .*of more than 300 digits"):
        parse(form.format(f"[{sign}{'7' * num_digits}]"))


@PARSERS
def test_a_syntax_error_says_where_it_is(parse, form):
    with pytest.raises(ValueError, match=r"line 1.* column \d"):
        parse(form.format("?"))
