"""The exporter's own check: it passes healthy graphs, and every planted fault makes it raise."""

import numpy as np
import pytest
import torch

from mod_edge.errors import ExportError
from mod_edge.export.bundle_writer import graph_weights
from mod_edge.export.check import (
    ALLOWED_RELATIVE_ERROR,
    check_numbers,
    check_structure,
    relative_error,
)
from mod_edge.export.step_io import reference_module
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.presets import preset_config
from mod_edge.plan.signature import head_signature, layer_signature, vision_signature
from mod_edge.plan.targets import CPU_FP32
from tests.export import graph_faults as faults

pytestmark = pytest.mark.numeric

CONFIG = preset_config("tiny")
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
    assert relative_error(np.zeros((2, 3)), np.zeros((3, 2))) == float("inf")
    assert relative_error(np.zeros((1, 3)), np.zeros((2, 3))) == float("inf")  # no broadcasting


def test_the_error_is_relative_to_the_largest_value_but_at_least_to_one():
    assert relative_error(np.array([30.0, 11.0]), np.array([30.0, 10.0])) == pytest.approx(1 / 30)
    assert relative_error(np.array([0.01]), np.array([0.0])) == pytest.approx(0.01)
    assert relative_error(np.zeros((0, 3)), np.zeros((0, 3))) == 0


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
