"""Where a whole stream can be run to be judged: the runtime's own runners."""

from collections.abc import Callable, Iterator
from functools import partial

from mod_edge.errors import ModEdgeError
from mod_edge.export.trt import TensorRT
from mod_edge.graph_backends import NotRun, rewriting
from mod_edge.opened_bundle import OpenedBundle
from mod_edge.recording import StreamTrace
from mod_edge.runtime.engine_choice import SessionLimits
from mod_edge.runtime.protocol import Protocol
from mod_edge.runtime.runner import Runner
from mod_edge.stream_check import Follow, StreamResult, check_stream
from mod_edge.targets import TARGETS
from mod_edge.tensorrt_backend import find_tensorrt

OpenRunner = Callable[[StreamTrace], Runner]


def check_streams(
    bundle: OpenedBundle, trace: StreamTrace, follow: Follow | None
) -> Iterator[StreamResult]:
    """The stream on every backend that this machine has for the bundle.

    Args:
        bundle: with all layers.
        trace: the reference's.
        follow: see `check_stream`.
    """
    if rewritten := rewriting(bundle.lowering):
        reason = f"{rewritten} for it, which is done graph by graph only"
        yield StreamResult("onnx CPU", "not run", reason)
    else:
        yield check_backend(bundle, trace, follow, "onnx CPU", partial(_onnx_runner, bundle))
    if TARGETS[bundle.lowering.target].compiler:
        tensorrt = find_tensorrt(bundle)
        if isinstance(tensorrt, NotRun):
            yield StreamResult(tensorrt.name, "not run", tensorrt.reason)
        else:
            open_runner = partial(_tensorrt_runner, bundle, tensorrt)
            yield check_backend(bundle, trace, follow, tensorrt.name, open_runner)


def check_backend(
    bundle: OpenedBundle,
    trace: StreamTrace,
    follow: Follow | None,
    name: str,
    open_runner: OpenRunner,
) -> StreamResult:
    """The stream on one backend; whatever is wrong with it stands in the result."""
    config = bundle.config
    protocol = Protocol(config.stream_config, bundle.tokenizer, trace.threshold)
    try:
        with open_runner(trace) as runner:
            return check_stream(
                trace,
                runner,
                config,
                protocol,
                bundle.lowering.precision,
                backend=name,
                follow=follow,
            )
    except ModEdgeError as exc:
        return StreamResult(name, "failed", str(exc))


def session_limits(bundle: OpenedBundle, trace: StreamTrace) -> SessionLimits:
    """What the trace asks of a runner."""
    capacity = bundle.lowering.capacity or trace.capacity
    return SessionLimits(capacity, trace.max_step_tokens, trace.frames_per_step)


def _onnx_runner(bundle: OpenedBundle, trace: StreamTrace) -> Runner:
    from mod_edge.runtime.onnx_runner import OnnxRunner

    return OnnxRunner(
        bundle.folder,
        bundle.config,
        bundle.lowering,
        trace.capacity,
        max_step_tokens=trace.max_step_tokens,
        frames_per_step=trace.frames_per_step,
    )


def _tensorrt_runner(bundle: OpenedBundle, tensorrt: TensorRT, trace: StreamTrace) -> Runner:
    from mod_edge.runtime.trt_runner import open_trt_runner

    limits = session_limits(bundle, trace)
    return open_trt_runner(bundle.folder, bundle.manifest, bundle.config, limits, tensorrt=tensorrt)
