"""Checks of every exported graph: its structure first, then its numbers against PyTorch.

The expected numbers come from the reference's own layers (keys unrotated, selection by mask) on
random inputs in the shapes of step that a stream has: one frame, many frames, text only, text with
no past, and in a model without an interval token frames without text.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from mod_edge.config import ModelConfig
from mod_edge.errors import ExportError
from mod_edge.export.random_step import FIRST_STEP, random_step
from mod_edge.export.step_io import Arrays
from mod_edge.export.widen import write_widened
from mod_edge.model.layers import MoDDecoderLayer
from mod_edge.native.int8_products import graph_session_options
from mod_edge.native.native_path import native_path
from mod_edge.plan.graph_kind import GraphKind
from mod_edge.plan.layout import FRAME, StepLayout, step_layout
from mod_edge.plan.parity import TIED_LOGITS, row_scales, selection_gap
from mod_edge.plan.rounding_tolerance import Tolerance, rounding_tolerance
from mod_edge.plan.signature import GraphSignature, TensorSpec
from mod_edge.plan.targets import Lowering

# Largest error allowed, as from `relative_errors`, where activations are not rounded (`verify`
# shares the bounds of the others). float32, measured over the graphs of all presets: 2.4e-6 at most
# (a MoD layer of 8b); of real faults, the vision tower's GELU without its tanh gives 4e-5, a norm's
# epsilon divided by ten 0.06, a wrong RoPE 0.4.
# float16, whose steps are 1e-3 of a value and which ONNX Runtime's CPU computes in float32: 1.7e-3
# on the tiny checkpoint, 1.8e-3 on layers of 8b. A bfloat16 graph is checked as a float32 graph
# with the rounded weights (`widen`), against the reference with the same weights.
ALLOWED_RELATIVE_ERROR = {"fp32": 2e-5, "fp16": 1e-2, "bf16": 2e-5}
STEP_SHAPES = {
    "one frame": (3, FRAME),
    "many frames": (1, FRAME, 1, FRAME, 2),
    "text": (4,),
    "first text": FIRST_STEP,
}
# Only without an interval token do frames follow each other, in steps without text.
SHAPES_WITHOUT_TEXT = {"one frame alone": (FRAME,), "many frames alone": (FRAME, FRAME)}
FORBIDDEN_OPS = frozenset({"Loop", "If", "Scan"})
REQUIRED_MOD_OPS = ("Gather", "ScatterND")
REQUIRED_ROUTER_OPS = ("TopK",)


def step_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The pieces of a step of every shape that a stream of this model has, by name."""
    without_text = {} if config.stream_config.interval_ids else SHAPES_WITHOUT_TEXT
    return STEP_SHAPES | without_text


def check_structure(
    path: Path, signature: GraphSignature, tensor_names: Iterable[str], *, has_router: bool
) -> None:
    """Check a graph file's ops, inputs, outputs and weights against its signature and kind.

    Raises:
        ExportError: names every fault.
    """
    onnx.checker.check_model(native_path(path))
    graph = onnx.load(str(path), load_external_data=False).graph
    ops = {node.op_type for node in graph.node}
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    faults = [f"it contains {op}" for op in sorted(ops & FORBIDDEN_OPS)]
    required: tuple[str, ...] = ()
    if signature.kind.is_mod:
        required = REQUIRED_MOD_OPS + (REQUIRED_ROUTER_OPS if has_router else ())
    faults += [f"it has no {op}" for op in required if op not in ops]
    faults += [f"input {value.name!r} is unused" for value in graph.input if value.name not in used]
    for values, specs in ((graph.input, signature.inputs), (graph.output, signature.outputs)):
        found, wanted = [_spec(value) for value in values], list(specs)
        if found != wanted:
            faults.append(f"its tensors are {found}, wanted {wanted}")
    initializers = [tensor.name for tensor in graph.initializer]
    faults += [
        f"weight {name!r} is unused or occurs {initializers.count(name)} times, wanted once"
        for name in tensor_names
        if initializers.count(name) != 1 or name not in used
    ]
    if faults:
        raise ExportError(f"{path.name}: {'; '.join(faults)}; this is a bug in mod-edge")


def check_numbers(
    path: Path,
    config: ModelConfig,
    signature: GraphSignature,
    lowering: Lowering,
    make_reference: Callable[[], nn.Module],
) -> float:
    """The graph's largest error against the reference over all step shapes, as `relative_errors`.

    Where activations are rounded, the mean of each output over all steps is judged too. Both get
    the same inputs and the same rounded weights, and the reference computes in float32, so only the
    graph's own arithmetic is measured.

    Args:
        path: the graph.
        config: the model's.
        signature: the graph's.
        lowering: what it was exported for.
        make_reference: returns a new `reference_module`, quantized as the graph is. It is not kept
            while the graph is loaded: two copies of a large head may not fit into memory.

    Raises:
        ExportError: the error exceeds `allowed_error`, or the selections differ.
    """
    names = [spec.name for spec in signature.outputs]
    layouts = _layouts(config, signature)
    reference = make_reference()
    steps = {
        shape: random_step(reference, config, signature, lowering, layout)
        for shape, layout in layouts.items()
    }
    del reference
    pairs: dict[str, list[OutputPair]] = {name: [] for name in names}
    with _session(path, signature.kind, lowering) as session:
        for shape, (inputs, theirs) in steps.items():
            ours = dict(zip(names, session.run(names, inputs), strict=True))
            where = f"{path.name}, {shape}"
            if "kept" in ours and not np.array_equal(ours["kept"], theirs["kept"]):
                reference = make_reference()
                _require_tie(reference, inputs, ours["kept"], theirs["kept"], where)
                _, theirs = random_step(
                    reference, config, signature, lowering, layouts[shape], ours["kept"]
                )
            for name in names:
                pairs[name].append(OutputPair(where, ours[name], theirs[name]))
    is_quantized = lowering.weight_form(signature.kind) is not None
    tolerance = allowed_error(signature.kind, lowering)
    return max(
        _require_close(path.name, name, pairs[name], tolerance, by_row=is_quantized)
        for name in names
    )


@dataclass(frozen=True)
class OutputPair:
    """One output of a step, `where`, of the graph and of the reference."""

    where: str
    ours: np.ndarray
    theirs: np.ndarray


def _require_close(
    file: str, name: str, pairs: Sequence[OutputPair], tolerance: Tolerance, *, by_row: bool
) -> float:
    """The largest error of the output `name` of the graph `file`, if both errors are allowed."""
    errors = [relative_errors(pair.ours, pair.theirs, by_row=by_row) for pair in pairs]
    for pair, error in zip(pairs, errors, strict=True):
        largest = float(error.max(initial=0))
        if not largest <= tolerance.largest:
            raise ExportError(
                f"{pair.where}: {name} differs from the reference by {largest:.1e}, "
                f"allowed {tolerance.largest:.0e}"
            )
    everything = np.concatenate([error.ravel() for error in errors])
    mean = float(everything.mean()) if everything.size else 0.0
    if not mean <= tolerance.mean:
        raise ExportError(
            f"{file}: {name} differs from the reference by {mean:.1e} on average over all steps, "
            f"allowed {tolerance.mean:.0e}"
        )
    return float(everything.max(initial=0))


def quantizing_cost(
    path: Path,
    config: ModelConfig,
    signature: GraphSignature,
    lowering: Lowering,
    make_original: Callable[[], nn.Module],
) -> float:
    """A quantized graph's largest error against the original weights, measured as `check_numbers`.

    Args:
        path: the graph.
        config: the model's.
        signature: the graph's.
        lowering: what it was exported for.
        make_original: returns a new `reference_module` without quantization.
    """
    names = [spec.name for spec in signature.outputs]
    original = make_original()
    steps = [
        random_step(original, config, signature, lowering, layout)
        for layout in _layouts(config, signature).values()
    ]
    del original
    with _session(path, signature.kind, lowering) as session:
        return max(
            float(relative_errors(ours, theirs[name], by_row=True).max(initial=0))
            for inputs, theirs in steps
            for name, ours in zip(names, session.run(names, inputs), strict=True)
            if name != "kept"  # routers are not quantized
        )


def allowed_error(kind: GraphKind, lowering: Lowering) -> Tolerance:
    """What is allowed of a graph of that kind."""
    unrounded = Tolerance(ALLOWED_RELATIVE_ERROR[lowering.precision])
    return rounding_tolerance(kind, lowering) or unrounded


def _layouts(config: ModelConfig, signature: GraphSignature) -> dict[str, StepLayout]:
    """The layout of every shape of step that the graph runs in."""
    return {
        shape: step_layout(pieces, config.frame_num_tokens, config.num_kept)
        for shape, pieces in step_shapes(config).items()
        if signature.kind.takes_text or FRAME in pieces
    }


@contextmanager
def _session(
    path: Path, kind: GraphKind, lowering: Lowering
) -> Iterator[onnxruntime.InferenceSession]:
    with tempfile.TemporaryDirectory() as folder:
        if lowering.precision == "bf16":
            path = write_widened(path, Path(folder))
        options = graph_session_options(lowering.weight_form(kind))
        if not lowering.is_quantized:  # MatMulNBits would compute in another way
            # Prepacking copies all weights, for speed that does not matter in a few runs.
            options.add_session_config_entry("session.disable_prepacking", "1")
        yield onnxruntime.InferenceSession(
            native_path(path), options, providers=["CPUExecutionProvider"]
        )


@torch.no_grad()
def _require_tie(
    reference: nn.Module,
    inputs: Arrays,
    ours: np.ndarray,
    theirs: np.ndarray,
    where: str,
) -> None:
    """Accept another selection (F, K) only where the router's logits differ less than rounding."""
    assert isinstance(reference, MoDDecoderLayer)
    assert reference.router is not None, "uniform selections have no ties"
    hidden = torch.from_numpy(inputs["hidden"])[0].float()
    logits = reference.router(hidden[torch.tensor(inputs["frame_index"])])[..., 0].numpy()
    gap = selection_gap(logits, ours)
    if not gap <= TIED_LOGITS:
        raise ExportError(
            f"{where}: kept differs from the reference: {ours.tolist()}, wanted {theirs.tolist()}"
        )


def relative_errors(ours: np.ndarray, theirs: np.ndarray, *, by_row: bool) -> np.ndarray:
    """The error of every value, float64; infinite if the shapes differ.

    Args:
        ours: of the graph.
        theirs: of the reference.
        by_row: relative to the largest value of each row, as in `verify`, else of the array (at
            least 1). Quantized graphs are judged by row, because they round each row by its own
            scale, and a wrong row of small values must not hide behind the others. Others keep the
            array's: rows that are small because terms cancelled out have float32's error of these.
    """
    if ours.shape != theirs.shape:
        return np.array([np.inf])
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    scales = row_scales(theirs) if by_row else max(1.0, float(np.abs(theirs).max(initial=0)))
    errors: np.ndarray = np.abs(ours - theirs) / scales
    return errors


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    dims = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
    return TensorSpec(value.name, dtype, dims)
