"""The ops of every weight form: the nodes that replace a MatMul, and the tensors that they read.

A form's nodes and tensors have to fit each other, so both are methods of one class. Everything
else of a graph stays as it was traced.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from mod_edge.export.stored_tensor import StoredTensor, packed_nibbles, stored, stored_int4
from mod_edge.model.quantized import U8_STEPS
from mod_edge.model.weight_codes import WeightCodes
from mod_edge.plan.weight_forms import SMALLEST_SCALE, WeightForm

ORT_DOMAIN = "com.microsoft"
FLOAT = TensorProto.FLOAT
# MatMulNBits rounds its input to int8 at the first level, and computes in float32 at the second.
INT8_ACCURACY, FLOAT_ACCURACY = 4, 1
SUMMED_ROWS = 1024
PART_AXIS = 1  # of cut rows (rows, parts, inputs of a part)


class QuantizedOps(ABC):
    """Makes the nodes and tensors of one form for one graph.

    Attributes:
        form: of the weights.
        constants: scalars, axes and dims that the nodes made so far read.
        domain: of the op; "" is ONNX's.
        suffixes: of the tensors that hold a weight.
    """

    domain = ""
    suffixes: tuple[str, ...] = ("codes", "scales")

    def __init__(self, form: WeightForm) -> None:
        """For weights of that form."""
        self.form = form
        self.constants: dict[str, TensorProto] = {}

    @abstractmethod
    def product(self, hidden: str, weight: str, dims: list[int], output: str) -> list[NodeProto]:
        """Nodes that compute `output` = `hidden` (..., in) @ `weight`, of dims [in, out]."""

    @abstractmethod
    def tensors(self, weight: str, codes: WeightCodes) -> list[StoredTensor]:
        """The tensors that hold a weight."""

    def tensor_names(self, weight: str, dims: Sequence[int]) -> list[str]:
        """Names of the tensors that hold a weight of dims [in, out]."""
        return [f"{weight}.{suffix}" for suffix in self.suffixes]

    def constant(self, name: str, value: float, dtype: type[np.generic] = np.float32) -> str:
        """The name of a constant scalar."""
        self.constants[name] = numpy_helper.from_array(np.array(value, dtype), name)
        return name

    def integers(self, name: str, *values: int) -> str:
        """The name of a constant list of axes or dims."""
        self.constants[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name


class RowInt8(QuantizedOps):
    """MatMulInteger of u8 rows and s8 weights, in standard ops.

    A rounded row is codes * scale + shift, so its product is scale * (codes @ weight) plus shift
    times the weight's column sums. ONNX Runtime fuses MatMulInteger, Cast and the product with both
    scales into one kernel. Weights that share an input share its rounding. Where rows are rounded
    in parts, the graph holds the weight in as many, and adds their products.
    """

    def __init__(self, form: WeightForm) -> None:
        super().__init__(form)
        self._rounded: set[str] = set()

    def product(self, hidden: str, weight: str, dims: list[int], output: str) -> list[NodeProto]:
        """See `QuantizedOps`."""
        num_parts = self.form.parts_of(weight, dims[0])
        nodes: list[NodeProto] = []
        if hidden not in self._rounded:
            self._rounded.add(hidden)
            nodes += self._rounding(hidden, dims[0], num_parts)
        held = _parts(weight, num_parts)
        for rows, part in zip(_parts(hidden, num_parts), held, strict=True):
            nodes += self._part_product(rows, part, f"{weight}.scales")
        products = [*(f"{part}.product" for part in held), f"{weight}.shift"]
        shifting = (f"{hidden}.shift", f"{weight}.sums", f"{weight}.shift")
        if num_parts == 1:
            return [*nodes, _node("Mul", *shifting), _node("Add", *products, output)]
        shape = ("Concat", [f"{weight}.leading", self.integers("the_rest", -1)])
        return [
            *nodes,
            _node("MatMul", *shifting),
            _node("Sum", *products, f"{weight}.product"),
            # A traced graph's hidden states may have no batch dim.
            helper.make_node("Shape", [hidden], [f"{weight}.leading"], end=-1),
            helper.make_node(*shape, [f"{weight}.dims"], axis=0),
            _node("Reshape", f"{weight}.product", f"{weight}.dims", output),
        ]

    def _part_product(self, rows: str, part: str, scales: str) -> list[NodeProto]:
        """Nodes that multiply parts of rows, without their shift, and of a weight."""
        cast = helper.make_node("Cast", [f"{part}.integers"], [f"{part}.floats"], to=FLOAT)
        return [
            _node("MatMulInteger", f"{rows}.codes", f"{part}.codes", f"{part}.integers"),
            cast,
            _node("Mul", f"{rows}.scale", scales, f"{part}.both_scales"),
            _node("Mul", f"{part}.floats", f"{part}.both_scales", f"{part}.product"),
        ]

    def tensor_names(self, weight: str, dims: Sequence[int]) -> list[str]:
        """See `QuantizedOps`."""
        held = _parts(weight, self.form.parts_of(weight, dims[0]))
        return [f"{weight}.scales", f"{weight}.sums", *(f"{part}.codes" for part in held)]

    def tensors(self, weight: str, codes: WeightCodes) -> list[StoredTensor]:
        """See `QuantizedOps`."""
        held = _parts(weight, self.form.parts_of(weight, codes.codes.shape[1]))
        parts, scales = codes.codes.chunk(len(held), 1), codes.scales[:, 0]
        sums = torch.stack([_column_sums(part) * scales for part in parts])  # (parts, out)
        return [
            stored(f"{weight}.scales", scales),
            stored(f"{weight}.sums", sums),
            *(stored(f"{name}.codes", part.T) for name, part in zip(held, parts, strict=True)),
        ]

    def _rounding(self, hidden: str, num_in: int, num_parts: int) -> list[NodeProto]:
        """Nodes that compute each row's codes (uint8), scale and shift (float32).

        As `model.quantized.rows_as_u8`, op by op.
        """
        last_axis = self.integers("last_axis", -1)
        steps = self.constant("u8_steps", U8_STEPS)
        least = self.constant("smallest_scale", SMALLEST_SCALE)
        unscaled = (self.constant("one", 1), self.constant("no_zero_point", 0, np.uint8))

        def part(op: str, *names: str) -> NodeProto:
            return _node(op, *names[:-1], f"{hidden}.{names[-1]}")

        rows, shift = hidden, "shift"
        cut, apart = list[NodeProto](), list[NodeProto]()
        if num_parts > 1:
            rows, shift = f"{hidden}.rows", "shifts"
            shape = self.integers(f"{hidden}.cut", -1, num_parts, num_in // num_parts)
            beside = self.integers("parts_beside", -1, 1, num_parts)
            cut = [_node("Reshape", hidden, shape, rows)]
            apart = [
                *(_split(hidden, each, num_parts) for each in ("scale", "codes")),
                part("Reshape", f"{hidden}.shifts", beside, "shift"),
            ]
        return [
            *cut,
            part("ReduceMin", rows, last_axis, "lowest"),
            part("ReduceMax", rows, last_axis, "highest"),
            part("Sub", f"{hidden}.highest", f"{hidden}.lowest", "range"),
            part("Div", f"{hidden}.range", steps, "step"),
            part("Max", f"{hidden}.step", least, "scale"),
            part("Div", f"{hidden}.lowest", f"{hidden}.scale", "exact_level"),
            part("Round", f"{hidden}.exact_level", "level"),
            part("Mul", f"{hidden}.level", f"{hidden}.scale", shift),
            part("Div", rows, f"{hidden}.scale", "scaled"),
            part("Sub", f"{hidden}.scaled", f"{hidden}.level", "shifted"),
            part("QuantizeLinear", f"{hidden}.shifted", *unscaled, "codes"),
            *apart,
        ]


class NBits(QuantizedOps):
    """MatMulNBits, onnxruntime's own op."""

    domain = ORT_DOMAIN

    def __init__(self, form: WeightForm) -> None:
        super().__init__(form)
        if form.has_zero_points:
            self.suffixes = (*self.suffixes, "zero_points")

    def product(self, hidden: str, weight: str, dims: list[int], output: str) -> list[NodeProto]:
        """See `QuantizedOps`."""
        node = helper.make_node(
            "MatMulNBits",
            [hidden, *self.tensor_names(weight, dims)],
            [output],
            domain=ORT_DOMAIN,
            K=dims[0],
            N=dims[1],
            bits=self.form.bits,
            block_size=self.form.block,
            accuracy_level=INT8_ACCURACY if self.form.activations else FLOAT_ACCURACY,
        )
        return [node]

    def tensors(self, weight: str, codes: WeightCodes) -> list[StoredTensor]:
        """See `QuantizedOps`."""
        unsigned = codes.codes
        if codes.zero_points is None:  # then the op takes the middle of the codes' range
            unsigned = (unsigned.to(torch.int16) + 2 ** (self.form.bits - 1)).to(torch.uint8)
        blocks = self._packed(unsigned).unflatten(1, (codes.scales.shape[1], -1))
        tensors = [stored(f"{weight}.codes", blocks), stored(f"{weight}.scales", codes.scales)]
        if codes.zero_points is not None:
            tensors.append(stored(f"{weight}.zero_points", self._packed(codes.zero_points)))
        return tensors

    def _packed(self, values: Tensor) -> Tensor:
        return values if self.form.bits == 8 else packed_nibbles(values)


class Dequantized(QuantizedOps):
    """DequantizeLinear and MatMul, which TensorRT compiles to a product with quantized weights."""

    def product(self, hidden: str, weight: str, dims: list[int], output: str) -> list[NodeProto]:
        """See `QuantizedOps`."""
        # Axis 1 counts output channels, axis 0 the inputs, cut into blocks.
        dequantize = helper.make_node(
            "DequantizeLinear",
            [f"{weight}.codes", f"{weight}.scales"],
            [f"{weight}.values"],
            axis=1 if self.form.block is None else 0,
        )
        if self.form.block is not None:
            dequantize.attribute.append(helper.make_attribute("block_size", self.form.block))
        return [dequantize, _node("MatMul", hidden, f"{weight}.values", output)]

    def tensors(self, weight: str, codes: WeightCodes) -> list[StoredTensor]:
        """See `QuantizedOps`."""
        store = stored if self.form.bits == 8 else stored_int4
        scales = codes.scales[:, 0] if self.form.block is None else codes.scales.T
        return [store(f"{weight}.codes", codes.codes.T), stored(f"{weight}.scales", scales)]


OPS: dict[str, type[QuantizedOps]] = {
    "MatMulInteger": RowInt8,
    "MatMulNBits": NBits,
    "DequantizeLinear": Dequantized,
}


def _column_sums(codes: Tensor) -> Tensor:
    """Sums (out,) over the inputs of codes (out, in), float32."""
    # In chunks: torch widens all of what it sums first, 8 bytes a weight.
    sums = torch.cat([rows.sum(1) for rows in codes.split(SUMMED_ROWS)])
    return sums.to(torch.float32)


def _node(op: str, *names: str) -> NodeProto:
    """A node by the names of its inputs and, last, of its output."""
    return helper.make_node(op, names[:-1], [names[-1]])


def _parts(name: str, count: int) -> list[str]:
    """Names of the parts of a tensor, or its own if it is not cut."""
    return [name] if count == 1 else [f"{name}.{index}" for index in range(count)]


def _split(hidden: str, what: str, count: int) -> NodeProto:
    """The node that gives every part of the rows its own `what`."""
    outputs = [f"{part}.{what}" for part in _parts(hidden, count)]
    node = helper.make_node("Split", [f"{hidden}.{what}"], outputs, axis=PART_AXIS)
    node.attribute.append(helper.make_attribute("num_outputs", count))
    return node
