"""The exporter's own check: it passes healthy graphs, and every planted fault makes it raise."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mod_edge.errors import ExportError
from mod_edge.export.bundle_writer import graph_weights
from mod_edge.export.check import (
    ALLOWED_RELATIVE_ERROR,
    check_numbers,
    check_structure,
    relative_errors,
)
from mod_edge.export.step_io import reference_module
from mod_edge.export.trace import with_form, write_graph
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.presets import preset_config
from mod_edge.plan.rounding_tolerance import ALLOWED_WITH_ROUNDED_ACTIVATIONS
from mod_edge.plan.signature import head_signature, layer_signature, vision_signature
from mod_edge.plan.targets import CPU_FP32, Lowering
from mod_edge.plan.weight_forms import NBITS_INT8
from tests.export import graph_faults as faults
from tests.export import quantized_faults

pytestmark = pytest.mark.numeric

CONFIG = preset_config("tiny")
CPU_INT8 = Lowering("cpu", "fp32", weight_format="int8")
DENSE, MOD = layer_signature(CONFIG, 0, CPU_FP32), layer_signature(CONFIG, 1, CPU_FP32)
VISION, HEAD = vision_signature(CONFIG, CPU_FP32), head_signature(CONFIG, CPU_FP32)

# Measured on the healthy tiny graphs: 1.0e-6 (MoD layer) at most. Of the faults below, the exact
# GELU in the vision tower is the mildest with 3.9e-5; the rest give 0.03 to 1.6.
HEALTHY_ERROR = 4e-6

FAULTS = [
    *((DENSE, fault) for fault in faults.ATTENTION_FAULTS),
    *((MOD, fault) for fault in faults.ATTENTION_FAULTS + faults.ROUTING_FAULTS),
    *((VISION, fault) for fault in faults.VISION_FAULTS),
    *((HEAD, fault) for fault in faults.HEAD_FAULTS),
]
every_kind = pytest.mark.parametrize(
    "signature", [VISION, DENSE, MOD, HEAD], ids=lambda graph: graph.kind.name
)


@pytest.fixture
def copy_of(tiny_bundle, tmp_path):
    """`copy_of(signature, fault=None)`: a copy of the graph, with a fault or without."""
    return lambda signature, fault=None: faults.copy_graph(
        tiny_bundle / signature.file, tmp_path, fault
    )


def numbers_of(path, signature, weights, lowering=CPU_FP32):
    """The error of the graph at `path` against the reference with these weights."""
    dtypes = {
        name: torch.float32
        if "norm" in name or "router" in name
        else getattr(torch, lowering.dtype)
        for name in weights
    }
    return check_numbers(
        path,
        CONFIG,
        signature,
        lowering,
        lambda: reference_module(CONFIG, signature.kind, weights.items(), dtypes),
    )


@pytest.fixture(scope="session")
def weights_of(tiny_checkpoint):
    """`weights_of(signature)`: the reference's weights under the graph's names."""
    checkpoint = Checkpoint(tiny_checkpoint)
    return lambda signature: dict(graph_weights(checkpoint, signature))


# ---- numbers ----


@every_kind
def test_a_healthy_graph_passes_far_below_what_is_allowed(copy_of, weights_of, signature):
    error = numbers_of(copy_of(signature), signature, weights_of(signature))
    assert error <= HEALTHY_ERROR <= ALLOWED_RELATIVE_ERROR["fp32"] / 5


@pytest.mark.parametrize(
    ("signature", "fault"),
    FAULTS,
    ids=[f"{graph.kind.name}-{fault.__name__}" for graph, fault in FAULTS],
)
def test_every_planted_fault_is_an_export_error(copy_of, weights_of, signature, fault):
    path = copy_of(signature, fault)
    with pytest.raises(ExportError, match="differs from the reference"):
        numbers_of(path, signature, weights_of(signature))


def test_a_wrong_epsilon_of_a_norm_is_far_above_what_is_allowed(copy_of, weights_of):
    # With hidden states of size 1 in all rows, a tenth of the epsilon gives 5e-6, which is allowed.
    path = copy_of(DENSE, faults.smaller_eps)
    with pytest.raises(ExportError, match=r"differs from the reference by [0-9.]+e-0[12]"):
        numbers_of(path, DENSE, weights_of(DENSE))


def test_weights_that_are_nan_are_an_export_error(copy_of, weights_of):
    weights = weights_of(HEAD)
    weights["norm.weight"] = weights["norm.weight"] * float("nan")
    with pytest.raises(ExportError, match="differs from the reference by nan"):
        numbers_of(copy_of(HEAD), HEAD, weights)


def test_other_shapes_are_an_infinite_error():
    for shapes in (((2, 3), (3, 2)), ((1, 3), (2, 3))):  # no broadcasting
        ours, theirs = map(np.zeros, shapes)
        assert relative_errors(ours, theirs, by_row=False).max() == float("inf")


def test_the_error_is_relative_to_the_largest_value_but_at_least_to_one():
    ours, theirs = np.array([[30.0, 11.0], [1.0, 0.0]]), np.array([[30.0, 10.0], [1.0, 0.1]])
    errors = relative_errors(ours, theirs, by_row=False)
    np.testing.assert_allclose(errors, [[0, 1 / 30], [0, 0.1 / 30]])
    assert relative_errors(np.array([0.01]), np.array([0.0]), by_row=False) == pytest.approx(0.01)
    assert not relative_errors(np.zeros((0, 3)), np.zeros((0, 3)), by_row=False).size


def test_a_small_row_of_a_quantized_graph_has_its_own_scale():
    ours, theirs = np.array([[30.0, 11.0], [1.0, 0.0]]), np.array([[30.0, 10.0], [1.0, 0.1]])
    np.testing.assert_allclose(relative_errors(ours, theirs, by_row=True), [[0, 1 / 30], [0, 0.1]])


# ---- graphs that round activations ----


@pytest.fixture
def int8_layer(tiny_topologies, weights_of, tmp_path):
    """`int8_layer(fault=None)`: the error of an int8 layer, with a fault or without."""
    form = CPU_INT8.weight_form(MOD.kind)
    topology, weights = with_form(tiny_topologies[MOD.kind], form), weights_of(MOD)
    healthy = tmp_path / "healthy" / "01.onnx"
    healthy.parent.mkdir()
    write_graph(topology, weights.items(), healthy)

    def measure(fault=None):
        path = faults.copy_graph(healthy, tmp_path, fault)
        return check_numbers(
            path,
            CONFIG,
            MOD,
            CPU_INT8,
            lambda: reference_module(
                CONFIG, MOD.kind, weights.items(), topology.weight_dtypes, form
            ),
        )

    return measure


def test_a_healthy_int8_layer_passes(int8_layer):
    assert int8_layer() <= ALLOWED_WITH_ROUNDED_ACTIVATIONS.largest / 3  # measured


def test_a_quantized_weight_that_the_precision_cannot_hold_is_an_export_error(
    tiny_topologies, weights_of, tmp_path
):
    topology = with_form(tiny_topologies[MOD.kind], NBITS_INT8)
    in_fp16 = replace(topology, weight_dtypes=dict.fromkeys(topology.weight_dtypes, torch.float16))
    weights = dict(weights_of(MOD))
    name = "mlp.up_proj.weight"
    weights[name] = weights[name].clone()
    weights[name][0, 0] = 8e4
    with pytest.raises(ExportError, match=f"'{name}' has values up to 8e"):
        write_graph(in_fp16, weights.items(), tmp_path / "01.onnx")


def test_a_fault_in_int8_is_an_export_error(int8_layer):
    with pytest.raises(ExportError, match=r"one frame: new_hidden differs .* by [0-9.]+e.0[01],"):
        int8_layer(quantized_faults.levels_from_zero)


def test_small_errors_everywhere_in_int8_are_an_export_error_by_their_mean(int8_layer):
    with pytest.raises(ExportError, match=r"01\.onnx: \w+ differs .* on average over all steps"):
        int8_layer(quantized_faults.one_level_too_few)


# ---- structure ----


@every_kind
def test_a_healthy_graph_matches_its_signature(copy_of, weights_of, signature):
    check_structure(copy_of(signature), signature, weights_of(signature), has_router=True)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (faults.with_a_branch, "it contains If"),
        (faults.without_scatter, "it has no ScatterND"),
        (faults.renamed_dim, "its tensors are .*'R'"),
        (faults.fixed_dim, "its tensors are .*29"),
        (faults.other_dtype, "its tensors are .*int32"),
        (faults.unread_past_length, "input 'past_length' is unused"),
        (faults.renamed_weight, "weight 'mlp.up_proj.weight' is unused or occurs 0 times"),
        (faults.merged_weight, "weight 'input_layernorm.weight' is unused"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_fault_in_structure_is_named(copy_of, weights_of, fault, says):
    path = copy_of(MOD, fault)
    with pytest.raises(ExportError, match=rf"01\.onnx: .*{says}.*; this is a bug in mod-edge"):
        check_structure(path, MOD, weights_of(MOD), has_router=True)


def test_a_dense_graph_is_not_a_mod_graph(copy_of, weights_of):
    with pytest.raises(ExportError, match="it has no ScatterND; it has no TopK"):
        check_structure(copy_of(DENSE), MOD, weights_of(DENSE), has_router=True)
