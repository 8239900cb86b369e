"""Lowerings: only what their target supports, in a format that older bundles share."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mod_edge.errors import ConfigError
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.targets import CPU_FP32, TARGETS, Lowering, lowering_from_json
from mod_edge.plan.weight_forms import AS_DTYPE, FORMAT_NAMES, INT4, INT8, INT8_WEIGHT_ONLY

CAPACITIES = st.builds(Rows, st.integers(1, 9999), st.integers(1, 9999))
LOWERINGS = st.sampled_from(sorted(TARGETS)).flatmap(
    lambda name: st.builds(
        Lowering,
        st.just(name),
        st.sampled_from(TARGETS[name].precisions),
        CAPACITIES if TARGETS[name].dialect == "in_place" else st.none(),
        st.sampled_from([each.name for each in TARGETS[name].weight_formats]),
    )
)


@given(LOWERINGS)
def test_a_written_lowering_is_read_back_equal(lowering):
    assert lowering_from_json(json.loads(json.dumps(lowering.to_json()))) == lowering


@pytest.mark.parametrize(
    ("lowering", "document"),
    [
        (CPU_FP32, {"target": "cpu", "precision": "fp32", "capacity": None}),
        (
            Lowering("rtx", "bf16", Rows(32, 16)),
            {"target": "rtx", "precision": "bf16", "capacity": [32, 16]},
        ),
    ],
)
def test_the_default_weight_format_is_not_written(lowering, document):
    assert lowering.to_json() == document
    assert list(lowering.to_json()) == list(document)
    assert lowering_from_json(document).weight_format == AS_DTYPE


def test_another_weight_format_is_written_and_read():
    lowering = Lowering("cpu", "fp32", weight_format=INT8)
    assert lowering.to_json()["weight_format"] == "int8"
    assert lowering_from_json(lowering.to_json()) == lowering


@pytest.mark.parametrize(
    ("name", "absent", "supported"),
    [
        ("cpu", INT8_WEIGHT_ONLY, "as-dtype, int8, int4"),
        ("cuda", INT8, "as-dtype, int8-weight-only, int4"),
        ("rtx", INT8, "as-dtype, int8-weight-only, int4"),
        ("tensorrt", INT8, "as-dtype, int8-weight-only, int4"),
        ("tensorrt-delta", INT4, "as-dtype, int8-weight-only"),
    ],
)
def test_weights_that_the_target_does_not_support_are_an_error(name, absent, supported):
    capacity = Rows(32, 16) if TARGETS[name].dialect == "in_place" else None
    says = f"target {name} supports the weights {supported}, not '{absent}'; use one of these"
    with pytest.raises(ConfigError, match=says):
        Lowering(name, TARGETS[name].precisions[0], capacity, absent)
    document = Lowering(name, TARGETS[name].precisions[0], capacity).to_json()
    with pytest.raises(ConfigError, match=says):
        lowering_from_json({**document, "weight_format": absent})


@pytest.mark.parametrize(
    ("unknown", "hint"), [("int8-weights-only", " (did you mean 'int8-weight-only'?)"), ("x", "")]
)
def test_unknown_weights_are_an_error_with_the_nearest_and_the_known_ones(unknown, hint):
    known = "as-dtype, int8, int8-weight-only, int4"
    with pytest.raises(ConfigError) as caught:
        Lowering("rtx", "fp16", Rows(32, 16), unknown)
    assert str(caught.value) == f"unknown weights {unknown!r}{hint}, known are {known}"


def test_unquantized_weights_are_the_first_format_of_every_target():
    assert {target.weight_formats[0].name for target in TARGETS.values()} == {AS_DTYPE}
    names = [each.name for target in TARGETS.values() for each in target.weight_formats]
    assert set(names) == set(FORMAT_NAMES)
