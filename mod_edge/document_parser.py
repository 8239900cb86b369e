"""Parse JSON and TOML text within limits that no useful file reaches.

Python's parsers answer a hundred thousand open brackets with a RecursionError, and read numbers of
thousands of digits, which overflow wherever a float is computed from them. Every file that users
write or copy is parsed here, so that both are ordinary faults of the file.
"""

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Manifests, configs and tokenizers have fewer than ten levels. Far below the recursion limit, so
# that `repr` of a parsed document never reaches it either.
MAX_LEVELS = 64
# Every whole number with this many digits converts to a float.
MAX_DIGITS = 300
SHOWN_DIGITS = 12


def parse_json(text: str) -> Any:
    """The document in `text`.

    Raises:
        ValueError: not JSON, or above the limits; a sentence that follows the file's name.
    """
    return _parsed(json.loads, json.JSONDecodeError, text)


def parse_toml(text: str) -> dict[str, Any]:
    """The table in `text`.

    Raises:
        ValueError: not TOML, or above the limits; a sentence that follows the file's name.
    """
    table: dict[str, Any] = _parsed(tomllib.loads, tomllib.TOMLDecodeError, text)
    return table


def _parsed(parse: Callable[[str], Any], syntax_error: type[ValueError], text: str) -> Any:
    try:
        document = parse(text)
    except syntax_error:
        raise
    except RecursionError as exc:
        raise _too_many_levels() from exc
    except ValueError as exc:  # Python converts at most `sys.get_int_max_str_digits()` digits
        raise ValueError(f"it has a number of more than {MAX_DIGITS} digits") from exc
    _check_limits(document)
    return document


def _check_limits(document: Any) -> None:
    num_outer, values = 0, [document]
    while values:
        if num_outer == MAX_LEVELS and any(isinstance(value, dict | list) for value in values):
            raise _too_many_levels()
        for value in values:
            if type(value) is int and abs(value) >= 10**MAX_DIGITS:
                raise ValueError(
                    f"it has the number {str(value)[:SHOWN_DIGITS]}... of more than {MAX_DIGITS} "
                    "digits"
                )
        values = [item for value in values for item in _items(value)]
        num_outer += 1


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _too_many_levels() -> ValueError:
    return ValueError(f"its brackets are nested in more than {MAX_LEVELS} levels")
