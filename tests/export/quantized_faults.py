"""Faults to plant in quantized graphs of the tiny preset, as those in `graph_faults`.

Each leaves a graph that loads and runs.
"""

import numpy as np
from onnx import helper


def levels_from_zero(cut):
    """Rows are rounded as if their lowest value was 0: negative values become 0."""
    zero = cut.constant("zero", np.float32(0))
    for node in cut.find("Round"):
        node.op_type = "Mul"
        node.input.append(zero)


def column_sums_left_out(cut):
    """The rows' shift is never added to the products."""
    zero = cut.constant("zero", np.float32(0))
    for node in list(cut.graph.node):
        if node.input and node.input[-1].endswith(".sums"):
            insert_between(cut, node, 1, helper.make_node("Mul", ["{in}", zero], ["{out}"]))


def one_activation_scale(cut):
    """All rows of a step share the lowest and the highest value."""
    for op, end in (("ReduceMin", ".lowest"), ("ReduceMax", ".highest")):
        for name in [node.output[0] for node in cut.find(op) if node.output[0].endswith(end)]:
            readers = cut.consumers(name)
            insert_between(
                cut,
                readers[0],
                list(readers[0].input).index(name),
                helper.make_node("Shape", ["{in}"], ["{in}.dims"]),
                helper.make_node(op, ["{in}"], ["{in}.of_all"]),
                helper.make_node("Expand", ["{in}.of_all", "{in}.dims"], ["{out}"]),
            )
            for reader in readers[1:]:
                cut.replace_input(reader, name, f"{name}.changed")


def one_level_too_few(cut):
    """Rows are rounded to 255 levels instead of 256: a small error in most values."""
    steps = cut.constant("too_few_steps", np.float32(254))
    for node in cut.consumers("u8_steps"):
        cut.replace_input(node, "u8_steps", steps)


def scales_along_the_wrong_axis(cut):
    """The scales of output channels are taken for inputs, where there are as many of both."""
    for node in cut.find("DequantizeLinear", axis=1):
        if node.input[0].startswith(("self_attn.q_proj", "self_attn.o_proj")):
            (axis,) = [each for each in node.attribute if each.name == "axis"]
            axis.i = 0


def scales_as_blocks_by_channels(cut):
    """The scales (out, blocks) are read as (blocks, out)."""
    for node in cut.find("MatMulNBits"):
        dims = next(list(each.dims) for each in cut.graph.initializer if each.name == node.input[2])
        insert_between(
            cut,
            node,
            2,
            helper.make_node("Transpose", ["{in}"], ["{in}.turned"], perm=[1, 0]),
            helper.make_node(
                "Reshape",
                ["{in}.turned", cut.constant(f"{node.input[2]}.dims", np.array(dims))],
                ["{out}"],
            ),
        )


def block_scales_off_by_one(cut):
    """Every block of inputs has the next block's scale."""
    for node, position, axis in block_scales(cut):
        name = node.input[position]
        dims = next(list(each.dims) for each in cut.graph.initializer if each.name == name)
        following = cut.constant(f"{name}.following", np.roll(np.arange(dims[axis]), -1))
        insert_between(
            cut,
            node,
            position,
            helper.make_node("Gather", ["{in}", following], ["{out}"], axis=axis),
        )


def zero_points_of_zero(cut):
    """Codes of blocks are taken for distances from 0 instead of from their zero point."""
    for node in cut.find("MatMulNBits"):
        name = node.input[3]
        tensor = next(each for each in cut.graph.initializer if each.name == name)
        node.input[3] = cut.constant(f"{name}.zero", np.zeros(list(tensor.dims), np.uint8))


def block_scales(cut):
    """(node, position of its scales, axis of their blocks) of every product with blocks."""
    nbits = [(node, 2, 1) for node in cut.find("MatMulNBits")]
    return nbits + [(node, 1, 0) for node in cut.find("DequantizeLinear", block_size=32)]


def insert_between(cut, node, position, *new):
    """Insert nodes that read "{in}", what `node` reads at `position`, and compute "{out}"."""
    name = node.input[position]
    for each in new:
        each.input[:] = [part.replace("{in}", name) for part in each.input]
        each.output[:] = [
            part.replace("{in}", name).replace("{out}", f"{name}.changed") for part in each.output
        ]
    cut.insert_before(node, *new)
    node.input[position] = f"{name}.changed"
