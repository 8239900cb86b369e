"""Faults to plant in `in_place` layers: mistakes in caches, masks and half precision."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.export.graph_faults import CONFIG, ordering, range_as_long_as


def attention(cut):
    (node,) = cut.find("Attention")
    return node


def top_left_causal(cut):
    """Row r sees columns 0..r, as TensorRT reads `is_causal`: the past's length is forgotten."""
    (is_seen,) = cut.find("LessOrEqual")
    unsqueezed = cut.producer(is_seen.input[1])
    added = cut.producer(unsqueezed.input[0])
    (rows,) = [name for name in added.input if name != "write_index"]
    cut.replace_input(unsqueezed, added.output[0], rows)


def unmasked_tail(cut):
    """Rows after the step are seen too: stale rows of evicted or withdrawn steps."""
    (is_seen,) = cut.find("LessOrEqual")
    (unsqueezed,) = cut.consumers(is_seen.output[0])
    cut.insert_before(
        unsqueezed,
        helper.make_node("Not", [is_seen.output[0]], ["is_unseen"]),
        helper.make_node("Or", [is_seen.output[0], "is_unseen"], ["is_any"]),
    )
    unsqueezed.input[0] = "is_any"


def scaled_twice(cut):
    for attribute in attention(cut).attribute:
        if attribute.name == "scale":
            attribute.f = CONFIG.text_config.head_dim**-0.5


def written_one_row_late(cut):
    for node in cut.find("TensorScatter"):
        late = f"{node.output[0]}_late"
        one = cut.constant(f"{late}_one", np.int64([1]))
        cut.insert_before(node, helper.make_node("Add", ["write_index", one], [late]))
        node.input[2] = late


def swapped_caches(cut):
    node = attention(cut)
    node.input[1], node.input[2] = node.input[2], node.input[1]


def one_kept_less(cut):
    """The lightest of the kept tokens is replaced by its neighbour: K-1 tokens are computed."""
    sort = ordering(cut)
    num_kept = CONFIG.num_kept
    columns = np.int64([*range(num_kept - 1), num_kept - 2])
    fewer = helper.make_node(
        "Gather", [sort.output[0], cut.constant("fewer_columns", columns)], ["fewer"], axis=1
    )
    cut.bypass(sort, "fewer")
    fewer_place = list(cut.graph.node).index(sort) + 1
    cut.graph.node.insert(fewer_place, fewer)


def skipped_token_in_the_cache(cut):
    """Keys and values of the step's first R rows, whatever was kept, are written."""
    scatter_rows = cut.find("ScatterND")[0]
    states = scatter_rows.input[0]
    (gather,) = [
        node for node in cut.find("Gather") if node.input[0] == states and _feeds_norm(cut, node)
    ]
    new = range_as_long_as(cut, gather.input[1], "wrong_line")
    new.append(helper.make_node("Gather", [states, "wrong_line"], ["wrong_rows"], axis=0))
    for weight in ("self_attn.k_proj.weight", "self_attn.v_proj.weight"):
        (product,) = cut.consumers(weight)
        renamed = {gather.output[0]: "wrong_rows"}
        new += _cloned(cut, product.input[0], renamed, weight)
        cut.insert_before(product, *new)
        product.input[0] = renamed[product.input[0]]
        new = []


def _feeds_norm(cut, gather):
    return any(node.op_type in ("Pow", "Cast") for node in cut.consumers(gather.output[0]))


def _cloned(cut, name, renamed, prefix):
    """Copies of all nodes between the renamed tensors and `name`, in order."""
    if name in renamed:
        return []
    try:
        node = cut.producer(name)
    except StopIteration:  # a weight or a graph input
        renamed[name] = name
        return []
    nodes = [copy for each in node.input for copy in _cloned(cut, each, renamed, prefix)]
    copy = type(node)()
    copy.CopyFrom(node)
    copy.name = ""
    copy.input[:] = [renamed[each] for each in node.input]
    renamed[name] = f"{prefix}_{name}"
    copy.output[:] = [renamed[name]]
    return [*nodes, copy]


def half_precision_norms(cut):
    """The squares of RMSNorm in float16, which end at 65504: rows above 255 overflow."""
    for square in cut.find("Pow"):
        widened = cut.producer(square.input[0])
        assert widened.op_type == "Cast"
        exponent = next(
            tensor for tensor in cut.graph.initializer if tensor.name == square.input[1]
        )
        half = numpy_helper.to_array(exponent).astype(np.float16)
        square.input[0] = widened.input[0]
        square.input[1] = cut.constant(f"{square.output[0]}_half_exponent", half)
        squared = f"{square.output[0]}_half"
        place = list(cut.graph.node).index(square) + 1
        cut.graph.node.insert(
            place, helper.make_node("Cast", [squared], [square.output[0]], to=TensorProto.FLOAT)
        )
        square.output[0] = squared


CACHE_FAULTS = [
    top_left_causal,
    unmasked_tail,
    scaled_twice,
    written_one_row_late,
    swapped_caches,
]
SELECTION_FAULTS = [one_kept_less, skipped_token_in_the_cache]
