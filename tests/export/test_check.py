"""The exporter's own check: it passes healthy graphs, and every planted fault makes it raise."""

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from mod_edge.errors import ExportError
from mod_edge.export.check import (
    ALLOWED_RELATIVE_ERROR,
    STEP_SHAPES,
    check_numbers,
    check_structure,
    relative_error,
)
from mod_edge.export.step_io import reference_module
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.presets import preset_config
from mod_edge.native.onnx_session import session_options
from mod_edge.plan.layout import step_layout
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
# onnx's evaluator against ONNX Runtime: 5.7e-7 and 7.1e-7 measured, by numpy's kernels; a wrong op
# gives what the faults do.
JUDGE_ERROR = 4e-6

FAULTS = [
    *((DENSE, fault) for fault in faults.ATTENTION_FAULTS),
    *((MOD, fault) for fault in faults.ATTENTION_FAULTS + faults.ROUTING_FAULTS),
    *((VISION, fault) for fault in faults.VISION_FAULTS),
    *((HEAD, fault) for fault in faults.HEAD_FAULTS),
]


@pytest.fixture
def copy_of(tiny_bundle, tmp_path):
    """`copy_of(signature, fault=None)`: the graph, cut or not, alone in a folder of its own."""

    def make(signature, fault=None):
        source = tiny_bundle / signature.file
        target = tmp_path / source.name
        shutil.copy(source.with_suffix(".data"), tmp_path)
        model = onnx.load(str(source), load_external_data=False)
        if fault is not None:
            before = model.SerializeToString(deterministic=True)
            fault(faults.Surgery(model))
            assert model.SerializeToString(deterministic=True) != before, "nothing was cut"
        target.write_bytes(model.SerializeToString())
        return target

    return make


def numbers_of(path, signature, weights):
    """The error of the graph at `path` against the reference with these weights."""
    dtypes = dict.fromkeys(weights, torch.float32)
    return check_numbers(
        path,
        CONFIG,
        signature,
        CPU_FP32,
        lambda: reference_module(CONFIG, signature.kind, weights.items(), dtypes),
    )


@pytest.fixture(scope="session")
def weights_of(tiny_checkpoint):
    """`weights_of(signature)`: the reference's weights under the graph's names."""
    checkpoint = Checkpoint(tiny_checkpoint)

    def read(signature):
        if signature.name == "vision":
            return dict(checkpoint.tensors("vision_model.", "connector."))
        prefixes, cut = ("model.norm.", "lm_head."), "model."
        if signature.name != "head":
            cut = f"model.layers.{int(signature.name[-2:])}."
            prefixes = (cut,)
        return {name.removeprefix(cut): tensor for name, tensor in checkpoint.tensors(*prefixes)}

    return read


# ---- numbers ----


@pytest.mark.parametrize("signature", [VISION, DENSE, MOD, HEAD], ids=lambda graph: graph.kind.name)
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


def test_a_norms_epsilon_shows_although_it_is_small(copy_of, weights_of):
    # with hidden states of one size, 1, a tenth of the epsilon gives 5e-6: less than is allowed
    path = copy_of(DENSE, faults.smaller_eps)
    with pytest.raises(ExportError, match=r"differs from the reference by [0-9.]+e-0[12]"):
        numbers_of(path, DENSE, weights_of(DENSE))


def test_weights_that_are_no_numbers_are_an_export_error(copy_of, weights_of):
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


# ---- another judge ----


@pytest.mark.parametrize("shape", STEP_SHAPES)
@pytest.mark.parametrize("signature", [DENSE, MOD], ids=lambda graph: graph.kind.name)
def test_onnx_own_evaluator_reads_the_layers_as_onnxruntime_does(tiny_bundle, signature, shape):
    path = tiny_bundle / signature.file
    inputs = random_step(signature, STEP_SHAPES[shape])
    names = [spec.name for spec in signature.outputs]
    theirs = ReferenceEvaluator(onnx.load(str(path))).run(names, inputs)
    session = onnxruntime.InferenceSession(
        str(path), session_options(), providers=["CPUExecutionProvider"]
    )
    for name, a, b in zip(names, session.run(names, inputs), theirs, strict=True):
        assert a.dtype == b.dtype, name
        assert relative_error(a, b) <= JUDGE_ERROR, name


def random_step(signature, pieces):
    """Inputs of a step by the signature's dims, with a past of 9 rows of which 6 are used."""
    layout = step_layout(pieces, CONFIG.frame_num_tokens, CONFIG.num_kept)
    sizes = {"T": layout.num_tokens, "S": 9}
    generator = np.random.default_rng(5)
    angles = generator.uniform(-3, 3, (1, layout.num_tokens, CONFIG.text_config.head_dim // 2))
    values = {
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
        "past_length": np.array([6]),
        "text_index": layout.text_index,
        "frame_index": layout.frame_index,
        "row_order": layout.row_order,
    }
    return {
        spec.name: values[spec.name]
        if spec.name in values
        else generator.normal(size=[sizes.get(dim, dim) for dim in spec.dims]).astype(spec.dtype)
        for spec in signature.inputs
    }


# ---- structure ----


def structure_of(path, signature, weights, *, has_router=True):
    check_structure(path, signature, weights, has_router=has_router)


@pytest.mark.parametrize("signature", [VISION, DENSE, MOD, HEAD], ids=lambda graph: graph.kind.name)
def test_a_healthy_graph_keeps_its_promises(copy_of, weights_of, signature):
    structure_of(copy_of(signature), signature, weights_of(signature))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (faults.with_a_branch, "it holds If"),
        (faults.without_scatter, "it lacks ScatterND"),
        (faults.renamed_dim, "it has .*'R'"),
        (faults.fixed_dim, "it has .*29"),
        (faults.other_dtype, "it has .*int32"),
        (faults.unread_past_length, "input 'past_length' is unused"),
        (faults.renamed_weight, "weight 'mlp.up_proj.weight' is there 0 times"),
        (faults.merged_weight, "weight 'input_layernorm.weight'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_broken_promise_is_named(copy_of, weights_of, fault, says):
    path = copy_of(MOD, fault)
    with pytest.raises(ExportError, match=rf"01\.onnx: .*{says}.*; this is a bug of mod-edge"):
        structure_of(path, MOD, weights_of(MOD))


def test_a_dense_graph_is_no_mod_graph(copy_of, weights_of):
    with pytest.raises(ExportError, match="it lacks ScatterND; it lacks TopK"):
        structure_of(copy_of(DENSE), MOD, weights_of(DENSE))
