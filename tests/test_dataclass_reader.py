"""The dataclass reader: written objects are read back equal, and every fault is named at once."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mod_edge.dataclass_reader import JSON, MAX_INT, TOML, dataclass_from_dict
from mod_edge.errors import ConfigError, DataError, shortened


@dataclass(frozen=True)
class Lens:
    """A nested dataclass."""

    focal_length: float
    is_wide: bool = False

    def __post_init__(self):
        if self.focal_length < 0:
            raise ConfigError(f"lens.focal_length={self.focal_length}, wanted 0 or more")


@dataclass(frozen=True)
class Device:
    """A field of every type that the reader supports."""

    name: str
    count: int
    lens: Lens
    size: tuple[int, int]
    tags: tuple[str, ...] = ()
    spare: Lens | None = None
    more: dict[str, Any] = field(default_factory=dict)


def read(data, syntax=JSON, **more):
    return dataclass_from_dict(Device, data, "a file", syntax=syntax, error=DataError, **more)


def faults_of(data, **more):
    with pytest.raises(DataError) as caught:
        read(data, **more)
    where, _, faults = str(caught.value).partition(": ")
    assert where == "a file"
    return faults.split("; ")


INTEGERS = st.integers(-MAX_INT, MAX_INT)
WHOLE = {"name": "a", "count": 1, "lens": {"focal_length": 2}, "size": [3, 4]}
LENSES = st.builds(
    Lens, st.floats(0, allow_infinity=False, allow_subnormal=False) | st.integers(0), st.booleans()
)
DEVICES = st.builds(
    Device,
    st.text(),
    INTEGERS,
    LENSES,
    st.tuples(INTEGERS, INTEGERS),
    st.lists(st.text()).map(tuple),
    st.none() | LENSES,
    st.dictionaries(st.text(), INTEGERS),
)


@given(DEVICES)
def test_an_object_written_as_json_is_read_back_equal(device):
    assert read(json.loads(json.dumps(asdict(device)))) == device
    assert read(asdict(device)) == device


def test_fields_with_a_default_may_be_omitted():
    assert read(WHOLE) == Device("a", 1, Lens(2), (3, 4))


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("name", 5, 'name=5, wanted a string, write name = "5"'),
        ("name", ["a"], "name=['a'], wanted a string"),
        ("name", None, "name=None, wanted a string"),
        ("count", True, "count=True, wanted a whole number"),
        ("count", 1.0, "count=1.0, wanted a whole number"),
        ("lens", 5, "lens=5, wanted a table, write lens = { focal_length = ... }"),
        ("spare", "x", "spare='x', wanted a table, write spare = { focal_length = ... }"),
        ("size", [1], "size=[1], wanted a list of 2 whole numbers"),
        ("size", [1, "2"], "size=[1, '2'], wanted a list of 2 whole numbers"),
        ("size", 12, "size=12, wanted a list of 2 whole numbers"),
        ("tags", [1], 'tags=[1], wanted a list of strings, write tags = ["..."]'),
        ("more", [], "more=[], wanted a table"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_the_wanted_one(name, value, fault):
    assert faults_of({**WHOLE, name: value}, syntax=TOML) == [fault]


@pytest.mark.parametrize("value", [True, "2", None, float("nan"), float("inf"), 10**400])
def test_a_number_is_finite_and_not_a_bool(value):
    fault = f"lens.focal_length={shortened(value)}, wanted a finite number"
    assert faults_of({**WHOLE, "lens": {"focal_length": value}}) == [fault]


@pytest.mark.parametrize("value", [MAX_INT + 1, -MAX_INT - 1, 10**30])
def test_a_whole_number_fits_in_64_bits(value):
    fault = f"count={value}, wanted a whole number of at most 64 bits"
    assert faults_of({**WHOLE, "count": value}) == [fault]


def test_a_long_value_is_shown_without_its_middle():
    (fault,) = faults_of({**WHOLE, "count": ["word"] * 20_000})
    assert fault.startswith("count=['word', 'word', ")
    assert fault.endswith("'word', 'word'], wanted a whole number")
    assert len(fault) < 250


def test_examples_are_in_the_syntax_of_the_file():
    assert faults_of({**WHOLE, "name": 5}) == ["name=5, wanted a string"]
    fault = 'lens=5, wanted an object, write "lens": { "focal_length": ... }'
    assert faults_of({**WHOLE, "lens": 5}) == [fault]


def test_all_faults_of_all_parts_are_named_at_once():
    data = {
        "nam": "a",
        "colour": 1,
        "count": "1",
        "lens": {"focal_length": -1},
        "size": [1, 2],
        "spare": {"is_wide": 0, "depth": 2},
    }
    assert faults_of(data) == [
        "unknown field 'nam' (did you mean 'name'?)",
        "unknown field 'colour', known are name, count, lens, size, tags, spare, more",
        "missing field 'name'",
        "count='1', wanted a whole number",
        "lens.focal_length=-1, wanted 0 or more",
        "unknown field 'spare.depth', known are focal_length, is_wide",
        "missing field 'spare.focal_length'",
        "spare.is_wide=0, wanted true or false",
    ]


def test_the_file_may_not_set_a_given_field():
    rest = {name: value for name, value in WHOLE.items() if name != "name"}
    assert read(rest, given={"name": "b"}) == Device("b", 1, Lens(2), (3, 4))
    fault = "unknown field 'name': it cannot be set here, it is always 'b'"
    assert faults_of(WHOLE, given={"name": "b"}) == [fault]
