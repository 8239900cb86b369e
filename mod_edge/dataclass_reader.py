"""Frozen dataclasses from a parsed JSON or TOML file; one error names all wrong fields.

The fields' names and annotations are the schema: `int`, `float`, `str` and `bool`, lists of them as
`tuple[str, ...]` or `tuple[int, int]`, another dataclass, `dict[str, Any]` for a part that is read
elsewhere, and `X | None` for a value that may be null. A dataclass checks its own ranges: an error
from its `__post_init__` becomes one of the faults.
"""

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from mod_edge.errors import ModEdgeError, nearest_hint, shortened

AnyDataclass = TypeVar("AnyDataclass")

NOTHING: Mapping[str, Any] = MappingProxyType({})
MAX_INT = 2**63 - 1  # numpy, PyTorch and ONNX hold sizes, counts and seeds in 64 bits
# The words of messages for one value, and for several in a list.
SCALARS = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a finite number", "finite numbers"),
    str: ("a string", "strings"),
}


@dataclass(frozen=True)
class Syntax:
    """A file format's words in messages.

    Attributes:
        mapping: what the format calls a set of named values.
        pair: format string of a name and its value.
    """

    mapping: str
    pair: str


JSON = Syntax("an object", '"{}": {}')
TOML = Syntax("a table", "{} = {}")


def dataclass_from_dict(
    kind: type[AnyDataclass],
    data: Mapping[str, Any],
    where: str,
    *,
    syntax: Syntax,
    error: type[ModEdgeError],
    given: Mapping[str, Any] = NOTHING,
    renamed: Mapping[str, str] = NOTHING,
) -> AnyDataclass:
    """An object of the dataclass `kind` from `data`.

    Args:
        kind: a dataclass with the field types that the module's docstring lists.
        data: values by field, as a JSON or TOML parser returns them.
        where: the file, or a part of it; the message begins with it.
        syntax: `JSON` or `TOML`.
        error: class of the error to raise.
        given: values of fields that the file may not set.
        renamed: new names of fields from earlier versions.

    Raises:
        ModEdgeError: an `error` that names all unknown and missing fields and wrong types, and
            what the dataclasses reject whose own fields have none of these.
    """
    reading = _Reading(syntax, renamed)
    result: AnyDataclass = reading.dataclass(kind, data, "", given)
    if reading.faults:
        raise error(f"{where}: {'; '.join(reading.faults)}")
    return result


class _Reading:
    """Reads values and collects faults; a value with a fault is read as None."""

    def __init__(self, syntax: Syntax, renamed: Mapping[str, str]) -> None:
        self.faults: list[str] = []
        self._syntax = syntax
        self._renamed = renamed

    def dataclass(
        self, kind: Any, data: Mapping[str, Any], prefix: str, given: Mapping[str, Any] = NOTHING
    ) -> Any:
        num_faults = len(self.faults)
        fields = {field.name: field for field in dataclasses.fields(kind)}
        types = get_type_hints(kind)
        self._note_unknown(data, [name for name in fields if name not in given], prefix, given)
        values = dict(given)
        for name, field in fields.items():
            if name in given:
                continue
            if name in data:
                values[name] = self._value(types[name], data[name], prefix + name)
            elif _has_no_default(field):
                self.faults.append(f"missing field {prefix + name!r}")
        if len(self.faults) > num_faults:
            return None
        try:
            return kind(**values)
        except ModEdgeError as exc:
            self.faults.append(str(exc))
            return None

    def _note_unknown(
        self, data: Mapping[str, Any], known: list[str], prefix: str, given: Mapping[str, Any]
    ) -> None:
        for name in data:
            if name in known:
                continue
            hint = nearest_hint(name, known) or f", known are {', '.join(known)}"
            if name in given:
                hint = f": it cannot be set here, it is always {given[name]!r}"
            elif name in self._renamed:
                hint = f", use {self._renamed[name]}"
            self.faults.append(f"unknown field {prefix + name!r}{hint}")

    def _value(self, wanted: Any, value: Any, name: str) -> Any:
        if isinstance(wanted, UnionType):
            if value is None:
                return None
            (wanted,) = (each for each in get_args(wanted) if each is not NoneType)
        if dataclasses.is_dataclass(wanted) and isinstance(value, dict):
            return self.dataclass(wanted, value, f"{name}.")
        if get_origin(wanted) is tuple and _is_list_of(value, get_args(wanted)):
            return tuple(value)
        if get_origin(wanted) is dict and isinstance(value, dict):
            return value
        if wanted in SCALARS and _is_a(value, wanted):
            return value
        self.faults.append(
            f"{name}={shortened(value)}, wanted {self._described(wanted, value, name)}"
        )
        return None

    def _described(self, wanted: Any, value: Any, name: str) -> str:
        """The wanted type in words, with an example of how to write it where that helps."""
        example = ""
        if dataclasses.is_dataclass(wanted):
            fields = dataclasses.fields(wanted)
            needed = [field for field in fields if _has_no_default(field)] or fields
            pairs = (self._syntax.pair.format(field.name, "...") for field in needed)
            words, example = self._syntax.mapping, f"{{ {', '.join(pairs)} }}"
        elif get_origin(wanted) is dict:
            words = self._syntax.mapping
        elif get_origin(wanted) is tuple:
            item, *more = get_args(wanted)
            size = "" if Ellipsis in more else f"{1 + len(more)} "
            words = f"a list of {size}{SCALARS[item][1]}"
            example = '["..."]' if item is str else ""
        else:
            words = SCALARS[wanted][0]
            if wanted is type(value) is int:  # of the right type, so it is too large
                words += " of at most 64 bits"
            if wanted is str and self._syntax is TOML and type(value) in (int, float):
                example = f'"{value}"'
        field = name.rpartition(".")[2]
        return words + (f", write {self._syntax.pair.format(field, example)}" if example else "")


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _is_list_of(value: Any, items: tuple[Any, ...]) -> bool:
    if not isinstance(value, list | tuple):
        return False
    if items[-1] is Ellipsis:
        items = items[:1] * len(value)
    return len(value) == len(items) and all(map(_is_a, value, items))


def _is_a(value: Any, wanted: type) -> bool:
    """Uses type(), not isinstance(), because a bool is an int in Python."""
    if wanted is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if wanted is int:
        return type(value) is int and abs(value) <= MAX_INT
    return type(value) is wanted
