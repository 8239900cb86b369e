"""Compares one graph on one backend with its recording: selections, then Polygraphy's errors.

Faults that Polygraphy lets pass are checked before: outputs that are missing, renamed, empty,
misshapen, of another dtype or not finite. Polygraphy then compares the largest error, because a
mean hides a wrong row; of graphs that round activations the mean is judged in addition.

A quantized graph is compared twice: with the same dequantized weights and the same rounding of
activations, which leaves the graph's own error, and with the original weights, which shows what
quantizing costs. Only the first is judged.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy import comparator
from polygraphy.backend.base import BaseRunner
from polygraphy.comparator import Comparator, IterationResult
from polygraphy.logger import G_LOGGER

from mod_edge.errors import BackendError
from mod_edge.plan.parity import (
    TIED_LOGITS,
    cut_margin,
    row_scales,
    selection_gap,
    worst_row_cosine,
)
from mod_edge.plan.signature import GraphSignature
from mod_edge.runtime.loaded_model import Int64Array
from mod_edge.verification.graph_backends import GraphBackend
from mod_edge.verification.graph_structure import structure_fault
from mod_edge.verification.recording import Arrays, GraphRecording, GraphStep, held_dtype
from mod_edge.verification.tolerances import graph_tolerance

QUANTILE = 0.999
NUM_FAULTS_SHOWN = 3


@dataclass(frozen=True)
class OutputError:
    """The error of one output in one step.

    Attributes:
        step: kind of the step.
        output: its name.
        largest, mean, quantile: error relative to the row's largest value; the quantile is 99.9 %.
        cosine: the smallest cosine similarity of a row with the reference's.
        shape: the output's.
        first_bad_row: its index in all dims but the last; None if all rows are right.
    """

    step: str
    output: str
    largest: float
    mean: float
    quantile: float
    cosine: float
    shape: tuple[int, ...]
    first_bad_row: tuple[int, ...] | None


@dataclass(frozen=True)
class Selection:
    """The tokens kept in one step of a MoD layer, here and by the reference.

    Attributes:
        step: kind of the step.
        ours, theirs: (F, K) as lists.
        num_other: tokens kept here that the reference drops.
        gap: largest difference of router logits between a token dropped here and a kept one,
            relative to the step's largest logit; infinite without a router.
        margin: in the reference, the smallest such difference between kept and dropped tokens.
    """

    step: str
    ours: list[list[int]]
    theirs: list[list[int]]
    num_other: int
    gap: float
    margin: float


@dataclass(frozen=True)
class QuantizingCost:
    """A graph's error against the original weights.

    Attributes:
        largest: error of a value, relative to the largest value of its row.
        mean: of an output over all steps, the largest of all outputs.
        cosine: the smallest cosine similarity of a row.
    """

    largest: float
    mean: float
    cosine: float


@dataclass(frozen=True)
class GraphResult:
    """The result of one graph on one backend.

    Attributes:
        graph: its name.
        backend: the backend's name.
        status: "ok", "failed" or "not run".
        reason: the fault, or why it was not run; "" if ok.
        allowed: the largest relative error allowed.
        outputs: the error of every float output of every step; empty after an earlier fault.
        selections: of every step with frames of a MoD layer.
        allowed_mean: the largest mean error allowed of an output over all steps; infinite if only
            the largest error is judged.
        cost: of quantizing; None if the graph is not quantized or failed before.
    """

    graph: str
    backend: str
    status: str
    reason: str = ""
    allowed: float = 0.0
    outputs: list[OutputError] = field(default_factory=list)
    selections: list[Selection] = field(default_factory=list)
    allowed_mean: float = math.inf
    cost: QuantizingCost | None = None

    @property
    def worst(self) -> OutputError | None:
        """The output with the largest error."""
        return max(self.outputs, key=lambda error: error.largest, default=None)

    @property
    def means(self) -> dict[str, float]:
        """The mean error of every output over all steps."""
        return _means(self.outputs)

    @property
    def num_ties(self) -> int:
        """Tokens kept here that the reference drops."""
        return sum(selection.num_other for selection in self.selections)


def check_graph(path: Path, recording: GraphRecording, backend: GraphBackend) -> GraphResult:
    """Run the graph file at `path` on every recorded step and compare its outputs.

    Faults of the graph are in the result; none is raised.
    """
    runner = backend.runner(path, recording.signature)

    def run() -> list[Arrays]:
        fault = structure_fault(path) if recording.lowering.is_quantized else ""
        if fault:
            raise BackendError(fault)
        return run_steps(runner, recording.steps)

    return compare_outputs(recording, backend.name, run)


def run_steps(runner: BaseRunner, steps: Sequence[GraphStep]) -> list[Arrays]:
    """The outputs of a Polygraphy runner for every step.

    Raises:
        BackendError: it does not load or does not run.
    """
    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            results = Comparator.run([runner], data_loader=[step.inputs for step in steps])
    except BackendError:
        raise
    except Exception as exc:  # of onnxruntime's, TensorRT's or Polygraphy's own types
        raise BackendError(f"it does not run: {exc}") from exc
    return [dict(outputs.items()) for outputs in results[0][1]]


def compare_outputs(
    recording: GraphRecording, backend: str, run: Callable[[], list[Arrays]]
) -> GraphResult:
    """Compare the outputs that `run` returns with the recording's.

    Args:
        recording: the graph's.
        backend: name of the backend.
        run: returns the outputs of every step in `held_dtype`, or raises BackendError.
    """
    allowed = graph_tolerance(recording.signature.kind, recording.lowering)
    result = GraphResult(
        recording.signature.name,
        backend,
        "ok",
        allowed=allowed.largest,
        allowed_mean=allowed.mean,
    )
    failed = partial(replace, result, status="failed")
    try:
        ours = run()
    except BackendError as exc:
        return failed(reason=str(exc))
    theirs = recording.outputs({})
    faults = [
        f"{step.kind}: {fault}"
        for step, our, their in zip(recording.steps, ours, theirs, strict=True)
        for fault in _output_faults(recording.signature, our, their)
    ]
    if faults:
        return failed(reason="; ".join(faults[:NUM_FAULTS_SHOWN]))
    selections = _selections(recording.steps, ours, theirs)
    chosen = list(selections.values())
    if untied := [selection for selection in chosen if not selection.gap <= TIED_LOGITS]:
        return failed(reason=_selection_fault(untied[0]), selections=chosen)
    tied = {number: ours[number]["kept"] for number, made in selections.items() if made.num_other}
    if tied:
        theirs = recording.outputs(tied)
    outputs = _errors(recording.steps, ours, theirs, allowed.largest)
    cost = None
    if recording.original is not None:  # with the same router, so the same selections
        cost = _quantizing_cost(recording.steps, ours, recording.original(tied))
    result = replace(result, selections=chosen, outputs=outputs, cost=cost)
    fault = _numbers_fault(result)
    return replace(result, status="failed", reason=fault) if fault else result


def _quantizing_cost(
    steps: Sequence[GraphStep], ours: Sequence[Arrays], original: Sequence[Arrays]
) -> QuantizingCost:
    errors = _errors(steps, ours, original, math.inf)
    return QuantizingCost(
        max(error.largest for error in errors),
        max(_means(errors).values()),
        min(error.cosine for error in errors),
    )


def _numbers_fault(result: GraphResult) -> str:
    """The first error that exceeds what is allowed; "" for none."""
    bad = next((error for error in result.outputs if error.first_bad_row is not None), None)
    if bad is not None:
        place = f"{bad.output}[{', '.join(map(str, bad.first_bad_row or ()))}]"
        return f"{bad.step}: first bad row {place}"
    for output, mean in result.means.items():
        if not mean <= result.allowed_mean:
            return f"{output} is off by {mean:.1e} on average, allowed {result.allowed_mean:.0e}"
    return ""


def _means(errors: Sequence[OutputError]) -> dict[str, float]:
    """The mean error of every output over all steps."""
    totals: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for error in errors:
        size = math.prod(error.shape)
        totals[error.output] = totals.get(error.output, 0.0) + error.mean * size
        sizes[error.output] = sizes.get(error.output, 0) + size
    return {name: total / max(1, sizes[name]) for name, total in totals.items()}


def _output_faults(signature: GraphSignature, ours: Arrays, theirs: Arrays) -> list[str]:
    specs = {spec.name: spec for spec in signature.outputs}
    if ours.keys() != specs.keys():
        return [f"its outputs are {sorted(ours)}, wanted {sorted(specs)}"]
    faults = []
    for name, spec in specs.items():
        array, wanted = ours[name], theirs[name]
        if array.dtype != held_dtype(spec) or array.shape != wanted.shape:
            faults.append(
                f"{name} is {array.dtype} {array.shape}, wanted {held_dtype(spec)} {wanted.shape}"
            )
        elif not np.isfinite(array).all():
            count = array.size - int(np.isfinite(array).sum())
            faults.append(f"{count} of {array.size} values of {name} are not finite")
    return faults


def _selections(
    steps: Sequence[GraphStep], ours: Sequence[Arrays], theirs: Sequence[Arrays]
) -> dict[int, Selection]:
    """By number of the step, the selections of steps with frames."""
    return {
        number: _selection(step, our["kept"], their["kept"])
        for number, (step, our, their) in enumerate(zip(steps, ours, theirs, strict=True))
        if "kept" in their and len(their["kept"])
    }


def _selection(step: GraphStep, ours: Int64Array, theirs: Int64Array) -> Selection:
    num_tokens = step.inputs["frame_index"].shape[1]
    num_other = sum(
        len(set(a) - set(b)) for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)
    )
    gap, margin = 0.0 if np.array_equal(ours, theirs) else float("inf"), float("inf")
    if step.router_logits is not None:
        margin = cut_margin(step.router_logits, theirs.shape[1])
        if ((ours >= 0) & (ours < num_tokens)).all():
            gap = selection_gap(step.router_logits, ours)
    return Selection(step.kind, ours.tolist(), theirs.tolist(), num_other, gap, margin)


def _selection_fault(selection: Selection) -> str:
    return (
        f"{selection.step}: kept has {selection.num_other} other tokens than the reference, with a "
        f"gap of {selection.gap:.1e} of the largest router logit; ties are up to {TIED_LOGITS:.0e}"
    )


def _errors(
    steps: Sequence[GraphStep], ours: Sequence[Arrays], theirs: Sequence[Arrays], allowed: float
) -> list[OutputError]:
    """The error of every float output of every step; none is a bad row if `allowed` is infinite."""
    return [
        error
        for step, our, their in zip(steps, ours, theirs, strict=True)
        for error in _output_errors(step.kind, our, their, allowed)
    ]


def _output_errors(step: str, ours: Arrays, theirs: Arrays, allowed: float) -> list[OutputError]:
    names = [name for name, array in theirs.items() if array.dtype == np.float32]
    scales = {name: row_scales(theirs[name]).astype(np.float64) for name in names}
    # Polygraphy's error is of the first relative to the second.
    pair = [
        IterationResult({name: arrays[name] / scales[name] for name in names})
        for arrays in (ours, theirs)
    ]
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        largest = _comparison("max", allowed)(*pair)
        spread = _comparison("quantile", allowed)(*pair)
    errors = []
    for name in names:
        rows = np.abs(pair[0][name] - pair[1][name]).max(axis=-1)
        bad = np.argwhere(~(rows <= allowed))
        errors.append(
            OutputError(
                step=step,
                output=name,
                largest=largest[name].max_absdiff,
                mean=spread[name].mean_absdiff,
                quantile=spread[name].quantile_absdiff,
                cosine=worst_row_cosine(ours[name], theirs[name]),
                shape=theirs[name].shape,
                first_bad_row=None if largest[name] else tuple(bad[0].tolist()),
            )
        )
    return errors


def _comparison(statistic: str, allowed: float) -> Callable[..., Mapping[str, Any]]:
    """Polygraphy's comparison by one statistic of the absolute error."""
    # Called CompareFunc.simple before 0.53, which deprecates that name.
    simple = getattr(comparator, "SimpleCompareFunc", None) or comparator.CompareFunc.simple
    made: Callable[..., Mapping[str, Any]] = simple(
        check_error_stat=statistic, atol=allowed, rtol=0.0, error_quantile=QUANTILE
    )
    return made
