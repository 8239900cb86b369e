"""The table of weight formats: every form of every target, and bytes per weight counted by hand."""

import pytest

from mod_edge.plan.targets import TARGETS
from mod_edge.plan.weight_forms import (
    DEQUANTIZED_INT4,
    DEQUANTIZED_INT8,
    INT8_ROWS,
    NBITS_INT4,
    NBITS_INT8,
)
from mod_edge.plan.weight_table import weight_table


@pytest.mark.parametrize(
    ("form", "scale_bytes", "block_bytes"),
    [
        (INT8_ROWS, 4, 32),  # its scales are per channel
        (DEQUANTIZED_INT8, 2, 32),
        (NBITS_INT8, 4, 32 + 4),  # symmetric: no zero points
        (NBITS_INT8, 2, 32 + 2),
        (NBITS_INT4, 4, 16 + 4 + 0.5),  # a zero point has 4 bits
        (NBITS_INT4, 2, 16 + 2 + 0.5),
        (DEQUANTIZED_INT4, 2, 16 + 2),
    ],
)
def test_a_weight_costs_its_bits_and_its_share_of_the_block(form, scale_bytes, block_bytes):
    assert form.bytes_per_weight(scale_bytes) == block_bytes / 32


def test_every_format_of_every_target_has_its_forms_in_every_precision():
    rows = weight_table()
    formats = {name: [each.name for each in TARGETS[name].weight_formats] for name in TARGETS}
    assert {
        name: list(dict.fromkeys(row.weights for row in rows if row.target == name))
        for name in TARGETS
    } == formats
    for row in rows:
        assert list(row.bytes_per_weight) == list(TARGETS[row.target].precisions)
    assert [row.part for row in rows if (row.target, row.weights) == ("cpu", "int4")] == [
        *("layers", "others")
    ]


def test_only_weights_in_the_precisions_dtype_have_no_form():
    plain = [row for row in weight_table() if row.op == "MatMul"]
    assert {row.weights for row in plain} == {"as-dtype"}
    assert {(row.bits, row.block, row.method, row.activations) for row in plain} == {
        (None, None, "", "")
    }
    assert next(row for row in plain if row.target == "rtx").bytes_per_weight == {
        **{"fp32": 4.0, "fp16": 2.0},
        "bf16": 2.0,
    }
