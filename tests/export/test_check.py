"""The exporter's own check: it passes healthy graphs, and every planted fault makes it raise.

Faults are surgery on the tiny bundle's graphs: the kind of slip that has been made before in code
of this sort, each in a graph that loads and runs.
"""

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mod_edge.checkpoint import Checkpoint
from mod_edge.errors import ExportError
from mod_edge.export.check import (
    ALLOWED_RELATIVE_ERROR,
    STEP_SHAPES,
    check_numbers,
    check_structure,
    relative_error,
)
from mod_edge.layout import step_layout
from mod_edge.onnx_session import session_options
from mod_edge.presets import preset_config
from mod_edge.signature import head_signature, layer_signature, vision_signature

CONFIG = preset_config("tiny")
DENSE, MOD = layer_signature(CONFIG, 0), layer_signature(CONFIG, 1)
VISION, HEAD = vision_signature(CONFIG), head_signature(CONFIG)

# Measured on the healthy tiny graphs: 1.0e-6 (MoD layer) at most. Of the faults below, the exact
# GELU in the vision tower is the mildest with 3.9e-5; the rest give 0.03 to 1.6.
HEALTHY_ERROR = 2e-6
# onnx's evaluator against ONNX Runtime: 5.7e-7 measured; a wrong op gives what the faults do.
JUDGE_ERROR = 2e-6


# ---- surgery ----


class Surgery:
    """A loaded graph with its nodes by output, to be cut and saved beside its weights."""

    def __init__(self, model):
        self.model = model
        self.graph = model.graph

    def find(self, op_type, **attributes):
        """All nodes of a type that have these attribute values, in graph order."""
        return [
            node
            for node in self.graph.node
            if node.op_type == op_type
            and attributes.items()
            <= {
                attribute.name: (
                    list(value)
                    if isinstance(value := helper.get_attribute_value(attribute), list)
                    else value
                )
                for attribute in node.attribute
                if attribute.name in attributes
            }.items()
        ]

    def producer(self, name):
        return next(node for node in self.graph.node if name in node.output)

    def consumers(self, name):
        return [node for node in self.graph.node if name in node.input]

    def replace_input(self, node, old, new):
        node.input[list(node.input).index(old)] = new

    def bypass(self, node, name):
        """Who read the node's output reads `name` instead."""
        for consumer in self.consumers(node.output[0]):
            self.replace_input(consumer, node.output[0], name)

    def constant(self, name, array):
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def insert_before(self, node, *new):
        place = list(self.graph.node).index(node)
        for offset, each in enumerate(new):
            self.graph.node.insert(place + offset, each)

    def swap_weights(self, first, second):
        """The two initializers change names, so that each feeds the other's node."""
        for tensor in self.graph.initializer:
            if tensor.name in (first, second):
                tensor.name = second if tensor.name == first else first


def swapped_norms(cut):
    cut.swap_weights("input_layernorm.weight", "post_attention_layernorm.weight")


def swapped_query_and_output(cut):
    cut.swap_weights("self_attn.q_proj.weight", "self_attn.o_proj.weight")


def swapped_key_and_value(cut):
    cut.swap_weights("self_attn.k_proj.weight", "self_attn.v_proj.weight")


def swapped_gate_and_up(cut):
    cut.swap_weights("mlp.gate_proj.weight", "mlp.up_proj.weight")


def transposed_query(cut):
    (product,) = cut.consumers("self_attn.q_proj.weight")
    cut.insert_before(
        product, helper.make_node("Transpose", ["self_attn.q_proj.weight"], ["turned"], perm=[1, 0])
    )
    cut.replace_input(product, "self_attn.q_proj.weight", "turned")


def unmasked_past(cut):
    (is_past,) = cut.find("Less")
    (where,) = cut.consumers(is_past.output[0])
    cut.bypass(where, where.input[1])


def unmasked_future(cut):
    (is_seen,) = cut.find("LessOrEqual")
    (where,) = cut.consumers(is_seen.output[0])
    cut.bypass(where, where.input[1])


def off_by_one_past(cut):
    (is_past,) = cut.find("Less")
    is_past.op_type = "LessOrEqual"


def unscaled_scores(cut):
    scale = CONFIG.text_config.head_dim**-0.5
    for tensor in cut.graph.initializer:
        array = small_array(tensor)
        if array is not None and array.dtype == np.float32 and np.allclose(array, scale):
            tensor.CopyFrom(numpy_helper.from_array(np.ones_like(array), tensor.name))


def small_array(tensor):
    return None if tensor.external_data else numpy_helper.to_array(tensor)


def queries_turned_backwards(cut):
    """The query's rotation with the sign of the sine changed: RoPE by minus the angle."""
    first = cut.find("Sub")[0]  # first * cos - second * sin, of the query
    first.op_type = "Add"


def other_groups(cut):
    """Query head h reads key head h % G instead of h // (H / G)."""
    text = CONFIG.text_config
    num_groups = text.num_key_value_heads
    group_size = text.num_attention_heads // num_groups
    (turned,) = cut.find("Transpose", perm=[1, 2, 0, 3])
    reshape = cut.producer(turned.input[0])
    reshape.input[1] = cut.constant(
        "other_shape", np.array([-1, group_size, num_groups, text.head_dim])
    )
    turned.attribute[0].ints[:] = [2, 1, 0, 3]


def smallest_selected(cut):
    for attribute in selection(cut).attribute:
        if attribute.name == "largest":
            attribute.i = 0


def selection(cut):
    return cut.find("TopK", largest=1)[0]


def ordering(cut):
    """The TopK that sorts the selected positions: its values are positions, its indices ranks."""
    return cut.find("TopK", largest=0)[0]


def unsorted_selection(cut):
    """The heaviest first, as TopK gives them."""
    sort, raw = ordering(cut), selection(cut)
    cut.graph.node.remove(sort)
    raw.output[1] = "kept"
    for node in cut.graph.node:
        node.input[:] = ["kept" if name == sort.input[0] else name for name in node.input]


def ranks_for_positions(cut):
    """What argsort gives: the first K tokens are computed, whatever the router says."""
    sort = ordering(cut)
    sort.output[:] = [sort.output[1], sort.output[0]]


def hidden_ranks(cut):
    """Ranks are gathered, while the output `kept` still tells the right positions."""
    sort = ordering(cut)
    (gather,) = [node for node in cut.consumers("kept") if node.input[0] == "frame_index"]
    cut.replace_input(gather, "kept", sort.output[1])


def weights_of_another_order(cut):
    """Router weights in the order of weight, rows in the order of time."""
    (gather,) = [node for node in cut.consumers("kept") if node.input[0] != "frame_index"]
    cut.replace_input(gather, "kept", ordering(cut).input[0])


def forgotten_row_order(cut):
    """Rows are computed text first: the causal order is lost."""
    for gather in [node for node in cut.find("Gather") if node.input[0] == concatenated(cut)]:
        cut.bypass(gather, gather.input[0])


def concatenated(cut):
    return next(node.output[0] for node in cut.find("Concat") if "text_index" in node.input)


def weights_in_text_first_order(cut):
    """Router weights meet the rows before these are put into time order."""
    (ones,) = cut.find("Expand")
    (cat,) = cut.consumers(ones.output[0])
    (gather,) = cut.consumers(cat.output[0])
    cut.bypass(gather, cat.output[0])


def angles_by_row_number(cut):
    """Kept tokens are renumbered 0, 1, 2, ... instead of keeping their own positions."""
    (rows,) = {
        node.input[1]
        for name in ("cos", "sin")
        for select in cut.consumers(name)
        for node in cut.consumers(select.output[0])
    }
    for name in ("cos", "sin"):
        (select,) = cut.consumers(name)
        for gather in cut.consumers(select.output[0]):
            shape, count, line = f"{name}_shape", f"{name}_count", f"{name}_line"
            cut.insert_before(
                gather,
                helper.make_node("Shape", [rows], [shape]),
                helper.make_node("Squeeze", [shape], [count]),
                helper.make_node(
                    "Range",
                    [
                        cut.constant(f"{name}_zero", np.int64(0)),
                        count,
                        cut.constant(f"{name}_one", np.int64(1)),
                    ],
                    [line],
                ),
            )
            gather.input[1] = line


def other_scaling(cut):
    """X + w * f(x), which the config's `full` is not."""
    scaled = whole_scaling(cut)
    added = cut.producer(scaled.input[1])
    weights, inputs, branch = scaled.input[0], *added.input
    added.op_type, scaled.op_type = "Mul", "Add"
    added.input[:] = [weights, branch]
    scaled.input[:] = [inputs, added.output[0]]


def whole_scaling(cut):
    (scatter,) = cut.find("ScatterND")
    return cut.producer(scatter.input[2])


def unscaled_kept_tokens(cut):
    scaled = whole_scaling(cut)
    cut.bypass(scaled, scaled.input[1])


def exact_gelu(cut):
    for node in cut.find("Gelu"):
        del node.attribute[:]


def swapped_red_and_blue(cut):
    """The picture's channels are read the other way round."""
    (cast,) = cut.find("Cast")
    turned = helper.make_node(
        "Gather", [cast.input[0], cut.constant("bgr", np.array([2, 1, 0]))], ["turned"], axis=3
    )
    channels = cast.input[0]
    if channels != "frames":  # the channels already stand first
        turned.attribute[0].i = 1
    cut.insert_before(cast, turned)
    cast.input[0] = "turned"


def unscaled_pixels(cut):
    """0..255 instead of -1..1."""
    (cast,) = cut.find("Cast")
    (subtract,) = cut.find("Sub")
    scaled = cut.consumers(subtract.output[0])[0]
    cut.bypass(scaled, cast.output[0])


def unweighted_norm(cut):
    (norm,) = cut.consumers("norm.weight")
    cut.bypass(norm, norm.input[1] if norm.input[0] == "norm.weight" else norm.input[0])


def smaller_eps(cut):
    """A tenth of the norms' epsilon."""
    for tensor in cut.graph.initializer:
        array = small_array(tensor)
        if array is not None and array.dtype == np.float32 and np.allclose(array, 1e-5, atol=1e-7):
            tensor.CopyFrom(numpy_helper.from_array(array / 10, tensor.name))


ATTENTION_FAULTS = [
    smaller_eps,
    swapped_norms,
    swapped_query_and_output,
    swapped_key_and_value,
    swapped_gate_and_up,
    transposed_query,
    unmasked_past,
    off_by_one_past,
    unmasked_future,
    unscaled_scores,
    queries_turned_backwards,
    other_groups,
]
ROUTING_FAULTS = [
    smallest_selected,
    unsorted_selection,
    ranks_for_positions,
    hidden_ranks,
    weights_of_another_order,
    forgotten_row_order,
    weights_in_text_first_order,
    angles_by_row_number,
    other_scaling,
    unscaled_kept_tokens,
]
FAULTS = [
    *((DENSE, fault) for fault in ATTENTION_FAULTS),
    *((MOD, fault) for fault in ATTENTION_FAULTS + ROUTING_FAULTS),
    *((VISION, fault) for fault in (exact_gelu, swapped_red_and_blue, unscaled_pixels)),
    (HEAD, unweighted_norm),
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
            fault(Surgery(model))
            assert model.SerializeToString(deterministic=True) != before, "nothing was cut"
        target.write_bytes(model.SerializeToString())
        return target

    return make


@pytest.fixture(scope="session")
def weights_of(tiny_checkpoint):
    """`weights_of(signature)`: the reference's weights under the graph's names."""
    checkpoint = Checkpoint(tiny_checkpoint)

    def read(signature):
        if signature.kind == "vision":
            return dict(checkpoint.tensors("vision_model.", "connector."))
        prefixes, cut = ("model.norm.", "lm_head."), "model."
        if signature.kind != "head":
            cut = f"model.layers.{int(signature.name[-2:])}."
            prefixes = (cut,)
        return {name.removeprefix(cut): tensor for name, tensor in checkpoint.tensors(*prefixes)}

    return read


# ---- numbers ----


@pytest.mark.parametrize("signature", [VISION, DENSE, MOD, HEAD], ids=lambda graph: graph.kind)
def test_a_healthy_graph_passes_far_below_what_is_allowed(copy_of, weights_of, signature):
    error = check_numbers(copy_of(signature), CONFIG, signature, weights_of(signature))
    assert error <= HEALTHY_ERROR <= ALLOWED_RELATIVE_ERROR / 10


@pytest.mark.parametrize(
    ("signature", "fault"),
    FAULTS,
    ids=[f"{graph.kind}-{fault.__name__}" for graph, fault in FAULTS],
)
def test_every_planted_fault_is_an_export_error(copy_of, weights_of, signature, fault):
    path = copy_of(signature, fault)
    with pytest.raises(ExportError, match="differs from the reference"):
        check_numbers(path, CONFIG, signature, weights_of(signature))


def test_a_norms_epsilon_shows_although_it_is_small(copy_of, weights_of):
    # with hidden states of one size, 1, a tenth of the epsilon gives 5e-6: less than is allowed
    path = copy_of(DENSE, smaller_eps)
    with pytest.raises(ExportError, match=r"differs from the reference by [0-9.]+e-0[12]"):
        check_numbers(path, CONFIG, DENSE, weights_of(DENSE))


def test_weights_that_are_no_numbers_are_an_export_error(copy_of, weights_of):
    weights = weights_of(HEAD)
    weights["norm.weight"] = weights["norm.weight"] * float("nan")
    with pytest.raises(ExportError, match="differs from the reference by nan"):
        check_numbers(copy_of(HEAD), CONFIG, HEAD, weights)


def test_other_shapes_are_an_infinite_error():
    assert relative_error(np.zeros((2, 3)), np.zeros((3, 2))) == float("inf")
    assert relative_error(np.zeros((1, 3)), np.zeros((2, 3))) == float("inf")  # no broadcasting


def test_the_error_is_relative_to_the_largest_value_but_at_least_to_one():
    assert relative_error(np.array([30.0, 11.0]), np.array([30.0, 10.0])) == pytest.approx(1 / 30)
    assert relative_error(np.array([0.01]), np.array([0.0])) == pytest.approx(0.01)
    assert relative_error(np.zeros((0, 3)), np.zeros((0, 3))) == 0


# ---- another judge ----


@pytest.mark.parametrize("shape", STEP_SHAPES)
@pytest.mark.parametrize("signature", [DENSE, MOD], ids=lambda graph: graph.kind)
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


@pytest.mark.parametrize("signature", [VISION, DENSE, MOD, HEAD], ids=lambda graph: graph.kind)
def test_a_healthy_graph_keeps_its_promises(copy_of, weights_of, signature):
    structure_of(copy_of(signature), signature, weights_of(signature))


def with_a_branch(cut):
    result = helper.make_tensor_value_info("result", onnx.TensorProto.BOOL, [])
    branches = [
        helper.make_graph([helper.make_node("Identity", ["is_so"], ["result"])], name, [], [result])
        for name in ("then", "else")
    ]
    cut.constant("is_so", np.bool_(True))
    cut.graph.node.append(
        helper.make_node(
            "If", ["is_so"], ["unread"], then_branch=branches[0], else_branch=branches[1]
        )
    )


def without_scatter(cut):
    """The computed rows are added in by other means, which TensorRT refuses or slows."""
    (scatter,) = cut.find("ScatterND")
    scatter.op_type = "Identity"
    del scatter.input[1:]


def unread_past_length(cut):
    unmasked_past(cut)
    for node in (*cut.find("Less"), cut.find("Where")[0]):
        cut.graph.node.remove(node)


def renamed_dim(cut):
    cut.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "R"


def fixed_dim(cut):
    cut.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 29


def other_dtype(cut):
    for value in cut.graph.input:
        if value.name == "past_length":
            value.type.tensor_type.elem_type = onnx.TensorProto.INT32


def renamed_weight(cut):
    for tensor in cut.graph.initializer:
        if tensor.name == "mlp.up_proj.weight":
            tensor.name = "val_43"
    for node in cut.graph.node:
        node.input[:] = ["val_43" if name == "mlp.up_proj.weight" else name for name in node.input]


def merged_weight(cut):
    """One norm's weight serves both, as where a simplifier finds them equal."""
    (norm,) = cut.consumers("input_layernorm.weight")
    cut.replace_input(norm, "input_layernorm.weight", "post_attention_layernorm.weight")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (with_a_branch, "it holds If"),
        (without_scatter, "it lacks ScatterND"),
        (renamed_dim, "it has .*'R'"),
        (fixed_dim, "it has .*29"),
        (other_dtype, "it has .*int32"),
        (unread_past_length, "input 'past_length' is unused"),
        (renamed_weight, "weight 'mlp.up_proj.weight' is there 0 times"),
        (merged_weight, "weight 'input_layernorm.weight'"),
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
