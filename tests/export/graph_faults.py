"""Faults to plant in the tiny bundle's graphs: mistakes that have been made in code of this kind.

Each changes a loaded graph by its ops and weights, not by the exporter's names, and leaves a graph
that loads and runs.
"""

import shutil

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mod_edge.model.presets import preset_config

CONFIG = preset_config("tiny")


def copy_graph(source, folder, fault=None):
    """Copy the graph `source` and its weights into `folder`, with `fault` planted; returns it."""
    shutil.copy(source.with_suffix(".data"), folder)
    model = onnx.load(str(source), load_external_data=False)
    if fault is not None:
        before = model.SerializeToString(deterministic=True)
        fault(Surgery(model))
        assert model.SerializeToString(deterministic=True) != before, "the fault changed nothing"
    target = folder / source.name
    target.write_bytes(model.SerializeToString())
    return target


class Surgery:
    """A loaded graph and the operations that faults are made of."""

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
        """Make the consumers of the node's output read `name` instead."""
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
        """Swap the names of two initializers, so that each feeds the other's node."""
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


def past_of_zeros(cut):
    """The row of zeros that is bound where there is no past is attended to."""
    (is_past,) = cut.find("Greater")
    (where,) = cut.consumers(is_past.output[0])
    cut.bypass(where, where.input[1])


def ignored_past(cut):
    """Every step attends to its new rows only."""
    (is_past,) = cut.find("Greater")
    (where,) = cut.consumers(is_past.output[0])
    cut.bypass(where, where.input[2])


def equal_shares(cut):
    """Past and new rows are mixed half and half."""
    (is_past,) = cut.find("Greater")
    (where,) = cut.consumers(is_past.output[0])
    where.input[1] = cut.constant("half", np.float32(0.5))


def largest_scores_only(cut):
    """The past's share follows from the largest scores, as if one row had all the weight."""
    (is_past,) = cut.find("Greater")
    (where,) = cut.consumers(is_past.output[0])
    sigmoid = cut.producer(where.input[1])
    sigmoid.input[0] = cut.producer(sigmoid.input[0]).input[0]


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


def queries_rotated_backwards(cut):
    """The query's rotation with the sine's sign flipped: RoPE by minus the angle."""
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


def without_padding(cut, name):
    """`name`, which has one row more than there are frames, sliced as the sorted positions are."""
    slicing = cut.producer("kept")
    cut.insert_before(slicing, helper.make_node("Slice", [name, *slicing.input[1:]], ["planted"]))
    return "planted"


def unsorted_selection(cut):
    """The heaviest first, as TopK returns them."""
    cut.bypass(ordering(cut), ordering(cut).input[0])


def ranks_for_positions(cut):
    """Ranks, as argsort returns them: the first K tokens are computed, whatever the router says."""
    sort = ordering(cut)
    sort.output[:] = [sort.output[1], sort.output[0]]


def hidden_ranks(cut):
    """Ranks are gathered, while the output `kept` still has the right positions."""
    (gather,) = [node for node in cut.consumers("kept") if node.input[0] == "frame_index"]
    cut.replace_input(gather, "kept", without_padding(cut, ordering(cut).output[1]))


def weights_of_another_order(cut):
    """Router weights in the order of weight, rows in the order of time."""
    (gather,) = [node for node in cut.consumers("kept") if node.input[0] != "frame_index"]
    cut.replace_input(gather, "kept", without_padding(cut, ordering(cut).input[0]))


def forgotten_row_order(cut):
    """Rows are computed text first: the causal order is lost."""
    for gather in [node for node in cut.find("Gather") if node.input[0] == concatenated(cut)]:
        cut.bypass(gather, gather.input[0])


def concatenated(cut):
    return next(node.output[0] for node in cut.find("Concat") if "text_index" in node.input)


def weights_in_text_first_order(cut):
    """Router weights multiply the rows before these are in time order."""
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
            cut.insert_before(gather, *range_as_long_as(cut, rows, f"{name}_line"))
            gather.input[1] = f"{name}_line"


def range_as_long_as(cut, rows, name):
    """Nodes that make 0, 1, 2, ... of the length of `rows` under this name."""
    bounds = [cut.constant(f"{name}_{value}", np.int64(value)) for value in (0, 1)]
    return [
        helper.make_node("Shape", [rows], [f"{name}_shape"]),
        helper.make_node("Squeeze", [f"{name}_shape"], [f"{name}_count"]),
        helper.make_node("Range", [bounds[0], f"{name}_count", bounds[1]], [name]),
    ]


def other_scaling(cut):
    """X + w * f(x), the scaling `delta`, where the config says `full`."""
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
    """The image's channels are read in reverse order."""
    (cast,) = cut.find("Cast")
    turned = helper.make_node(
        "Gather", [cast.input[0], cut.constant("bgr", np.array([2, 1, 0]))], ["turned"], axis=3
    )
    channels = cast.input[0]
    if channels != "frames":  # the channels already come first
        turned.attribute[0].i = 1
    cut.insert_before(cast, turned)
    cast.input[0] = "turned"


def unscaled_pixels(cut):
    """0..255 instead of -1..1."""
    (turned,) = cut.consumers(cut.find("Cast")[0].output[0])
    (subtract,) = cut.find("Sub")
    scaled = cut.consumers(subtract.output[0])[0]
    cut.bypass(scaled, turned.output[0])


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
    past_of_zeros,
    ignored_past,
    equal_shares,
    largest_scores_only,
    unmasked_future,
    unscaled_scores,
    queries_rotated_backwards,
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
VISION_FAULTS = [exact_gelu, swapped_red_and_blue, unscaled_pixels]
HEAD_FAULTS = [unweighted_norm]


# ---- faults in structure ----


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
    """The computed rows are not scattered back."""
    (scatter,) = cut.find("ScatterND")
    scatter.op_type = "Identity"
    del scatter.input[1:]


def unread_past_length(cut):
    past_of_zeros(cut)
    (is_past,) = cut.find("Greater")
    for node in (is_past, *cut.consumers(is_past.output[0])):
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
    """Both norms share one weight, as when a simplifier merges equal initializers."""
    (norm,) = cut.consumers("input_layernorm.weight")
    cut.replace_input(norm, "input_layernorm.weight", "post_attention_layernorm.weight")
