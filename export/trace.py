"""ONNX graphs from one trace per kind of graph, into which each graph's weights are written.

Weights are traced as graph inputs named like the checkpoint's tensors and become initializers only
when a graph is written. So the exporter cannot fold, merge or rename them, layers of one kind share
one trace, and tracing needs no weights in memory.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn

from mod_edge.config import ModelConfig
from mod_edge.errors import ExportError
from mod_edge.export.graphs import graph_module, linear_weight_names
from mod_edge.export.quantize import quantize_graph
from mod_edge.export.quantized_ops import OPS, QuantizedOps
from mod_edge.export.stored_tensor import StoredTensor, raw_array, stored
from mod_edge.model.weight_codes import WeightCodes, weight_codes
from mod_edge.plan.signature import GraphSignature
from mod_edge.plan.targets import Lowering
from mod_edge.plan.weight_forms import WeightForm, is_quantized

# onnxruntime can memory-map external data that starts on a page boundary.
DATA_ALIGNMENT = 4096
# Example sizes for tracing: all above 1, because torch.export specializes on 0 and 1, and all
# different, so that it does not unify two dims.
TRACE_SIZES = {"T": 29, "X": 5, "F": 2, "S": 7, "R": 11, "B": 13}


@dataclass(frozen=True)
class Topology:
    """A traced graph whose weights are still inputs.

    Attributes:
        proto: the ONNX model without weights.
        weight_shapes: shape of every weight in the graph, quantized ones unquantized.
        weight_dtypes: its dtype in the graph; of a quantized weight, its scales'.
        transposed: names of weights that the graph holds as [in, out].
        quantized: names of those that it holds as codes.
        ops: of the quantized weights' form; None if there are none.
    """

    proto: onnx.ModelProto
    weight_shapes: Mapping[str, tuple[int, ...]]
    weight_dtypes: Mapping[str, torch.dtype]
    transposed: frozenset[str]
    quantized: frozenset[str] = frozenset()
    ops: QuantizedOps | None = None

    @property
    def tensor_names(self) -> list[str]:
        """Names of the initializers that hold the weights."""
        kept = [name for name in self.weight_shapes if name not in self.quantized]
        if self.ops is None:
            return kept
        held = [self.ops.tensor_names(name, self.weight_shapes[name]) for name in self.quantized]
        return kept + [each for names in held for each in names]


def trace(config: ModelConfig, signature: GraphSignature, lowering: Lowering) -> Topology:
    """The topology of `signature`'s kind of graph, traced at this config's sizes."""
    module = graph_module(config, signature.kind, lowering)
    # Uninitialized: torch.export reads only shapes and dtypes.
    weights = {
        name: torch.empty(param.shape, dtype=param.dtype)
        for name, param in module.named_parameters()
    }
    inputs = [
        torch.zeros(
            [dim if isinstance(dim, int) else TRACE_SIZES[dim] for dim in spec.dims],
            dtype=getattr(torch, spec.dtype),
        )
        for spec in signature.inputs
    ]
    dynamic = [
        {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(spec.dims) if dim in TRACE_SIZES}
        for spec in signature.inputs
    ]
    with _quiet_exporter():
        program = torch.onnx.export(
            _WeightsAsInputs(module),
            (weights, inputs),
            dynamo=True,
            opset_version=lowering.opset,
            dynamic_shapes=(dict.fromkeys(weights), dynamic),
            input_names=[*weights, *(spec.name for spec in signature.inputs)],
            output_names=[spec.name for spec in signature.outputs],
            verbose=False,
        )
    assert program is not None  # only the legacy exporter returns None
    proto = program.model_proto
    _clean(proto, signature)
    topology = Topology(
        proto=proto,
        weight_shapes={name: tuple(weight.shape) for name, weight in weights.items()},
        weight_dtypes={name: weight.dtype for name, weight in weights.items()},
        transposed=linear_weight_names(module),
    )
    form = lowering.weight_form(signature.kind)
    return topology if form is None else with_form(topology, form)


def with_form(topology: Topology, form: WeightForm) -> Topology:
    """A copy of an unquantized topology that holds and multiplies its linear weights in `form`."""
    quantized = frozenset(filter(is_quantized, topology.transposed))
    if not quantized:
        return topology
    ops = OPS[form.op](form)
    proto = quantize_graph(topology.proto, quantized, ops)
    return replace(topology, proto=proto, quantized=quantized, ops=ops)


def write_graph(
    topology: Topology, weights: Iterable[tuple[str, Tensor]], path: Path
) -> dict[str, WeightCodes]:
    """Write `topology` with these weights as `path` and, beside it, one external data file.

    Args:
        topology: from `trace`.
        weights: names and tensors in the checkpoint's layout; one tensor is in memory at a time.
        path: the .onnx file to write; the data file's suffix is .data. Without weights there is
            no data file.

    Returns:
        The codes of quantized weights, by the weight's name.

    Raises:
        ExportError: a weight is missing, unknown, given twice, of another shape, or too large for
            its dtype.
    """
    data_path = path.with_suffix(".data")
    written: set[str] = set()
    codes: dict[str, WeightCodes] = {}
    initializers: list[TensorProto] = []
    with data_path.open("wb") as data:
        for name, tensor in weights:
            if name in written or name not in topology.weight_shapes:
                raise ExportError(f"{path.name}: weight {name!r} is unknown or given twice")
            written.add(name)
            for held in _graph_tensors(name, tensor, topology, codes):
                data.write(b"\0" * (-data.tell() % DATA_ALIGNMENT))
                initializers.append(held.external(data_path.name, data.tell()))
                data.write(np.ascontiguousarray(raw_array(held.values)).data)
    missing = topology.weight_shapes.keys() - written
    if missing:
        raise ExportError(f"{path.name}: no weights for {', '.join(sorted(missing))}")
    model = onnx.ModelProto()
    model.CopyFrom(topology.proto)
    if not initializers:
        data_path.unlink()
    signature_inputs = [spec for spec in model.graph.input if spec.name not in written]
    del model.graph.input[:]
    model.graph.input.extend(signature_inputs)
    model.graph.initializer.extend(initializers)
    path.write_bytes(model.SerializeToString())
    return codes


def rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype`.

    Raises:
        ExportError: a value overflows.
    """
    require_range(name, tensor, dtype)
    return tensor.to(dtype)


def require_range(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Check that no finite value of `tensor` overflows in `dtype`.

    Raises:
        ExportError: one does.
    """
    if not tensor.numel():
        return
    # aminmax, unlike isfinite, allocates no second tensor of a head's size.
    extremes = torch.stack(tensor.aminmax())
    if extremes.isfinite().all() and not extremes.to(dtype).isfinite().all():
        raise ExportError(
            f"weight {name!r} has values up to {float(extremes.abs().max()):.3g}, the largest of "
            f"{dtype} is {torch.finfo(dtype).max:.3g}; export with --precision bf16 or fp32"
        )


class _WeightsAsInputs(nn.Module):
    """Calls a module with weights given as inputs instead of its own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # Not a submodule, so that torch.export does not find the module's own parameters.
        self.__dict__["module"] = module
        self.eval()

    def forward(self, weights: dict[str, Tensor], inputs: list[Tensor]) -> object:
        return torch.func.functional_call(self.__dict__["module"], weights, tuple(inputs))


def _clean(proto: onnx.ModelProto, signature: GraphSignature) -> None:
    """Name the dynamic dims (the exporter calls them s0, s1, ...) and drop its metadata."""
    specs = {spec.name: spec for spec in (*signature.inputs, *signature.outputs)}
    for value in (*proto.graph.input, *proto.graph.output):
        spec = specs.get(value.name)
        if spec is None:
            continue
        for dim, wanted in zip(value.type.tensor_type.shape.dim, spec.dims, strict=True):
            if isinstance(wanted, str):
                dim.dim_param = wanted
    # Inner shapes keep the exporter's dim names, which no longer match; readers infer shapes again.
    # The metadata is the source file and line of every node: most of the file, with private paths.
    del proto.graph.value_info[:]
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    for item in (*proto.graph.node, *proto.graph.input, *proto.graph.output):
        del item.metadata_props[:]
        item.doc_string = ""


def _graph_tensors(
    name: str, tensor: Tensor, topology: Topology, codes: dict[str, WeightCodes]
) -> list[StoredTensor]:
    """What the graph holds for the checkpoint's weight `name`; adds its codes if it has any."""
    wanted = topology.weight_shapes[name]
    held = tensor.T if name in topology.transposed else tensor
    if tuple(held.shape) != wanted:
        raise ExportError(f"weight {name!r} is {tuple(held.shape)}, wanted {wanted}")
    dtype = topology.weight_dtypes[name]
    if topology.ops is None or name not in topology.quantized:
        return [stored(name, rounded(name, held, dtype))]
    require_range(name, tensor, dtype)
    codes[name] = weight_codes(name, tensor, topology.ops.form, dtype)
    return topology.ops.tensors(name, codes[name])


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's warnings that do not concern the user's model."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that torchvision is missing, which is not needed
    try:
        with warnings.catch_warnings():
            # A deprecation inside torch itself.
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)
