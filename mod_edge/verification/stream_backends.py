"""Backends that run a whole stream: the runtime's own models."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from mod_edge.bundle.bundle import Bundle
from mod_edge.errors import ModEdgeError
from mod_edge.native.int8_products import U8_BY_U8, any_int8_products, exact_int8_products
from mod_edge.plan.protocol import Protocol
from mod_edge.runtime.backends import BackendChoice, load_model
from mod_edge.runtime.loaded_model import LoadedModel, StreamLimits
from mod_edge.verification.graph_backends import (
    NO_CUDA,
    ONNX_CPU,
    ONNX_CPU_UNSIGNED,
    NotRun,
    has_cuda_provider,
    rewriting,
)
from mod_edge.verification.recording import StreamTrace
from mod_edge.verification.stream_check import Follow, StreamResult, check_stream
from mod_edge.verification.tensorrt_backend import find_tensorrt
from mod_edge.verification.tolerances import StreamQuantizingCost, stream_tolerance

NOT_JUDGED = (
    "this model amplifies rounding so much, as random weights do, that a sound stream is as far "
    "off as a faulty one; only the graphs above were judged, each alone"
)

LoadBackend = Callable[[StreamTrace], LoadedModel]


def check_streams(
    bundle: Bundle, trace: StreamTrace, follow: Follow | None, cost: StreamQuantizingCost | None
) -> Iterator[StreamResult]:
    """The result of the stream on every backend for the bundle.

    Args:
        bundle: with all layers.
        trace: the reference's.
        follow: see `check_stream`.
        cost: of quantizing; None if the bundle does not round activations.
    """
    change = rewriting(bundle.lowering)
    if change:
        reason = f"{change} is only done graph by graph"
        yield StreamResult(ONNX_CPU, "not run", reason)
    else:
        for device in ("cpu", "cuda") if bundle.lowering.target == "cuda" else ("cpu",):
            if device == "cuda" and not has_cuda_provider():
                yield StreamResult(NO_CUDA.name, "not run", NO_CUDA.reason)
                continue
            chosen = partial(_load, bundle, BackendChoice("onnx", device))
            name = NO_CUDA.name if device == "cuda" else _cpu_name(bundle)
            yield check_backend(bundle, trace, follow, cost, name, chosen)
    if bundle.target.compiler:
        tensorrt = find_tensorrt(bundle)
        if isinstance(tensorrt, NotRun):
            yield StreamResult(tensorrt.name, "not run", tensorrt.reason)
        else:
            chosen = partial(_load, bundle, BackendChoice("tensorrt"))
            yield check_backend(bundle, trace, follow, cost, tensorrt.name, chosen)


def check_backend(
    bundle: Bundle,
    trace: StreamTrace,
    follow: Follow | None,
    cost: StreamQuantizingCost | None,
    name: str,
    load_backend: LoadBackend,
) -> StreamResult:
    """The result of the stream on one backend; faults are in it, none is raised."""
    config = bundle.config
    protocol = Protocol(config.stream_config, bundle.tokenizer, trace.threshold)
    tolerance = stream_tolerance(bundle.lowering, cost)
    try:
        with load_backend(trace) as model, model.open_stream() as state:
            result = check_stream(
                trace, state, config, protocol, tolerance, backend=name, follow=follow
            )
    except ModEdgeError as exc:
        return StreamResult(name, "failed", str(exc))
    reason = NOT_JUDGED if result.status == "not judged" else result.reason
    return replace(result, reason=reason, cost=cost)


def _cpu_name(bundle: Bundle) -> str:
    """The name of the graphs' backend that multiplies as `run` does on this CPU."""
    is_unsigned = any_int8_products(bundle.lowering) and exact_int8_products() == U8_BY_U8
    return ONNX_CPU_UNSIGNED if is_unsigned else ONNX_CPU


def stream_limits(bundle: Bundle, trace: StreamTrace) -> StreamLimits:
    """The limits that a model needs for the trace."""
    capacity = bundle.lowering.capacity or trace.capacity
    return StreamLimits(capacity, trace.max_step_tokens, trace.frames_per_step)


def _load(bundle: Bundle, choice: BackendChoice, trace: StreamTrace) -> LoadedModel:
    return load_model(bundle, stream_limits(bundle, trace), choice)[0]
