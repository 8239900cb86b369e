"""Every form's ops and tensors in a graph, judged by onnx's reference evaluator and onnxruntime.

The graphs are one product each: hidden (1, R, in) times a weight (out, in), in the smallest model
that has it. onnxruntime's own quantizer judges the layout of MatMulNBits.
"""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)

from mod_edge.errors import ExportError
from mod_edge.export.quantize import quantize_graph
from mod_edge.export.quantized_ops import OPS, ORT_DOMAIN
from mod_edge.export.stored_tensor import raw_array
from mod_edge.model.quantized import rounding_of
from mod_edge.model.weight_codes import WeightCodes, weight_codes
from mod_edge.native.onnx_session import session_options
from mod_edge.plan.weight_forms import (
    DEQUANTIZED_INT4,
    DEQUANTIZED_INT8,
    INT8_ROWS,
    NBITS_INT4,
    NBITS_INT4_CPU,
    NBITS_INT8,
)
from tests.export.one_product import product, quantized, traced

pytestmark = pytest.mark.numeric

FORMS = [INT8_ROWS, NBITS_INT4_CPU, NBITS_INT4, NBITS_INT8, DEQUANTIZED_INT8, DEQUANTIZED_INT4]
IN_ONNX = [INT8_ROWS, DEQUANTIZED_INT8, DEQUANTIZED_INT4]  # MatMulNBits is onnxruntime's own
NUM_ROWS, NUM_IN, NUM_OUT = 5, 96, 7
NUM_BLOCKS = 3
IN_PARTS = "mlp.down_proj.weight"  # its input rows are rounded in parts
# Relative to the largest value; of whole layers 9e-7 was measured. A wrong scale gives a tenth.
ALLOWED = 1e-5
# An input between two of 254 levels may fall to either: its weight's share of a step.
ALLOWED_WITH_ROUNDED_INPUTS = 1e-2


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dims_of(*names):
    return dict.fromkeys(names, (NUM_IN, NUM_OUT))


def run(model, hidden, outputs=("product",)):
    options = session_options()
    if any(node.op_type == "MatMulInteger" for node in model.graph.node):
        # Exact u8 x s8 products on an x86 CPU without VNNI too.
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(list(outputs), {"hidden": hidden.numpy()})


def relative(ours, theirs):
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def allowed(form):
    return ALLOWED_WITH_ROUNDED_INPUTS if form.activations else ALLOWED


def ident(form):
    return f"{form.op}-{form.bits}{'-rounding' if form.activations else ''}"


# ---- numbers ----


@pytest.mark.parametrize("form", FORMS, ids=ident)
def test_onnxruntime_computes_the_twins_product(form):
    weight, hidden = random(NUM_OUT, NUM_IN), random(1, NUM_ROWS, NUM_IN, seed=1)
    (ours,) = run(quantized(form, {"weight": weight}), hidden)
    rounded = rounding_of("weight", NUM_IN, form)(hidden)
    theirs = rounded @ weight_codes("weight", weight, form).values().T
    assert relative(ours, theirs.numpy()) <= allowed(form)
    assert (
        relative(ours, (hidden @ weight.T).numpy()) > 10 * ALLOWED
    )  # quantizing changes something


@pytest.mark.parametrize("form", IN_ONNX, ids=ident)
def test_onnxs_reference_evaluator_computes_the_twins_product(form):
    weight, hidden = random(NUM_OUT, NUM_IN), random(1, NUM_ROWS, NUM_IN, seed=1)
    model = quantized(form, {"weight": weight})
    (ours,) = ReferenceEvaluator(model).run(["product"], {"hidden": hidden.numpy()})
    rounded = rounding_of("weight", NUM_IN, form)(hidden)
    theirs = rounded @ weight_codes("weight", weight, form).values().T
    assert relative(ours, theirs.numpy()) <= allowed(form)


@pytest.mark.parametrize("row", [0.0, 1e-30, 24_000.0])
def test_rows_of_every_size_leave_the_other_rows_exact_in_int8(row):
    weight, hidden = random(NUM_OUT, NUM_IN), random(1, NUM_ROWS, NUM_IN, seed=1)
    hidden[0, 2] = row
    (ours,) = run(quantized(INT8_ROWS, {"weight": weight}), hidden)
    theirs = (hidden @ weight_codes("weight", weight, INT8_ROWS).values().T).numpy()
    for number in range(NUM_ROWS):
        scale = max(np.abs(theirs[0, number]).max(), 1e-6)
        assert np.abs(ours[0, number] - theirs[0, number]).max() <= 0.02 * scale, number


def test_the_products_of_a_rows_parts_are_added():
    weight, hidden = random(NUM_OUT, NUM_IN), random(1, NUM_ROWS, NUM_IN, seed=1)
    hidden[0, 2, 7] = 24_000
    rounded = rounding_of(IN_PARTS, NUM_IN, INT8_ROWS)(hidden)
    theirs = (rounded @ weight_codes(IN_PARTS, weight, INT8_ROWS).values().T).numpy()
    model = quantized(INT8_ROWS, {IN_PARTS: weight}, product(IN_PARTS))
    ours = run(model, hidden)[0]
    evaluated = ReferenceEvaluator(model).run(["product"], {"hidden": hidden.numpy()})[0]
    for number in range(NUM_ROWS):
        for product_of in (ours, evaluated):
            error = relative(product_of[0, number], theirs[0, number])
            assert error <= ALLOWED_WITH_ROUNDED_INPUTS, number


# ---- nodes ----


def test_weights_that_share_an_input_share_its_rounding():
    names = ("q", "k", "v", "gate", "up")
    readers = [
        *(product(name, f"{name}_out") for name in names[:3]),
        helper.make_node("Relu", ["hidden"], ["normed"]),
        *(product(name, f"{name}_out", "normed") for name in names[3:]),
    ]
    weights = {name: random(NUM_OUT, NUM_IN, seed=seed) for seed, name in enumerate(names)}
    model = quantized(INT8_ROWS, weights, *readers)
    roundings = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert [node.output[0] for node in roundings] == ["hidden.codes", "normed.codes"]
    products = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    assert [node.input[0] for node in products] == [*["hidden.codes"] * 3, *["normed.codes"] * 2]
    hidden = random(1, NUM_ROWS, NUM_IN, seed=9)
    for name, ours in zip(
        names, run(model, hidden, [f"{name}_out" for name in names]), strict=True
    ):
        single = run(
            quantized(INT8_ROWS, {"weight": weights[name]}),
            hidden if name in names[:3] else hidden.relu(),
        )[0]
        assert relative(ours, single) <= ALLOWED


def test_quantizing_changes_neither_the_traced_graph_nor_other_inputs():
    proto = traced(product(), product("other", "other_out"), dims=dims_of("weight", "other"))
    before = proto.SerializeToString()
    ops = OPS["MatMulInteger"](INT8_ROWS)
    graph = quantize_graph(proto, {"weight"}, ops).graph
    assert proto.SerializeToString() == before
    assert [value.name for value in graph.input] == ["hidden", "other"]
    assert [node.op_type for node in graph.node if "other" in node.input] == ["MatMul"]


@pytest.mark.parametrize(
    "readers",
    [
        [product(), product(output="again")],
        [helper.make_node("Relu", ["weight"], ["product"])],
        [product(), helper.make_node("Relu", ["weight"], ["again"])],
        [helper.make_node("MatMul", ["weight", "hidden"], ["product"])],
    ],
    ids=["read twice", "read by another op", "read by another op too", "the first factor"],
)
@pytest.mark.parametrize("form", FORMS, ids=ident)
def test_a_weight_that_not_one_matmul_reads_is_an_error(form, readers):
    with pytest.raises(ExportError, match="planted: wanted one MatMul that reads each of weight"):
        quantize_graph(traced(*readers, dims=dims_of("weight")), {"weight"}, OPS[form.op](form))


def test_every_weight_that_is_not_read_is_named():
    proto = traced(product(), dims=dims_of("weight", "q", "k"))
    with pytest.raises(ExportError, match=r"reads each of k, q$"):
        quantize_graph(proto, {"weight", "q", "k"}, OPS["MatMulInteger"](INT8_ROWS))


@pytest.mark.parametrize("form", FORMS, ids=ident)
@pytest.mark.parametrize("name", ["weight", IN_PARTS])
def test_a_weight_is_held_by_the_tensors_that_the_graph_reads(form, name):
    ops = OPS[form.op](form)
    held = ops.tensors(name, weight_codes(name, random(NUM_OUT, NUM_IN), form))
    names = ops.tensor_names(name, (NUM_IN, NUM_OUT))
    assert [each.name for each in held] == names
    graph = quantize_graph(traced(product(name), dims=dims_of(name)), {name}, ops).graph
    inputs = {name for node in graph.node for name in node.input}
    assert set(names) <= inputs


@pytest.mark.parametrize(("form", "level"), [(NBITS_INT4_CPU, 4), (NBITS_INT4, 1), (NBITS_INT8, 1)])
def test_only_the_cpus_product_rounds_its_input(form, level):
    (node,) = quantize_graph(
        traced(product(), dims=dims_of("weight")), {"weight"}, OPS[form.op](form)
    ).graph.node
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    assert (node.op_type, node.domain) == ("MatMulNBits", ORT_DOMAIN)
    assert attributes == {
        **{"K": NUM_IN, "N": NUM_OUT, "bits": form.bits},
        **{"block_size": 32, "accuracy_level": level},
    }


# ---- layout ----


def onnxruntimes_tensors(weight, bits, *, is_symmetric):
    """The tensors of onnxruntime's own quantizer for a MatMul with `weight` (out, in)."""
    proto = traced(product(), dims=dims_of("weight"))
    del proto.graph.input[1]
    proto.graph.initializer.append(numpy_helper.from_array(weight.T.numpy().copy(), "weight"))
    quantizer = MatMulNBitsQuantizer(
        proto,
        algo_config=DefaultWeightOnlyQuantConfig(
            block_size=32, is_symmetric=is_symmetric, bits=bits, accuracy_level=1
        ),
    )
    quantizer.process()
    (node,) = (node for node in quantizer.model.graph().node if node.op_type == "MatMulNBits")
    tensors = {each.name: numpy_helper.to_array(each) for each in quantizer.model.initializer()}
    return node, [tensors[name] for name in node.input[1:]]


@pytest.mark.parametrize("form", [NBITS_INT4, NBITS_INT8], ids=ident)
def test_the_layout_is_that_of_onnxruntimes_quantizer(form):
    weight = random(NUM_OUT, NUM_IN)
    node, theirs = onnxruntimes_tensors(weight, form.bits, is_symmetric=not form.has_zero_points)
    ours = OPS[form.op](form).tensors("weight", weight_codes("weight", weight, form))
    assert len(ours) == len(theirs)
    for held, expected in zip(ours, theirs, strict=True):
        array = raw_array(held.values)
        assert array.dtype == expected.dtype
        assert array.size == expected.size, held.name
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    assert (attributes["K"], attributes["N"], attributes["bits"]) == (NUM_IN, NUM_OUT, form.bits)


@pytest.mark.parametrize("form", [NBITS_INT4, NBITS_INT8], ids=ident)
def test_our_packing_of_onnxruntimes_codes_is_onnxruntimes_packing(form):
    _, (packed, scales, *zero_points) = onnxruntimes_tensors(
        random(NUM_OUT, NUM_IN), form.bits, is_symmetric=not form.has_zero_points
    )
    codes = WeightCodes(
        torch.from_numpy(unpacked(packed, form.bits)),
        torch.from_numpy(scales.reshape(NUM_OUT, NUM_BLOCKS).copy()),
        torch.from_numpy(unpacked(zero_points[0], 4)[:, :NUM_BLOCKS]) if zero_points else None,
    )
    if not zero_points:  # ours are signed then
        signed = codes.codes.to(torch.int16) - 2 ** (form.bits - 1)
        codes = replace(codes, codes=signed.to(torch.int8))
    held = {each.name: raw_array(each.values) for each in OPS[form.op](form).tensors("w", codes)}
    assert np.array_equal(held["w.codes"].reshape(packed.shape), packed)
    assert np.array_equal(held["w.scales"].ravel(), scales.ravel())
    if zero_points:  # a row of three ends with half a byte of padding
        ours, theirs = (unpacked(each, 4) for each in (held["w.zero_points"], zero_points[0]))
        assert np.array_equal(ours[:, :NUM_BLOCKS], theirs[:, :NUM_BLOCKS])


def unpacked(packed, bits):
    """The values (out, ...) of uint8 `packed`, of two in a byte the lower half first."""
    rows = packed.reshape(NUM_OUT, -1)
    return rows.copy() if bits == 8 else np.stack([rows & 15, rows >> 4], 2).reshape(NUM_OUT, -1)
