"""Compiles one ONNX graph into one TensorRT engine, checked against the graph's signature.

TensorRT can build silently wrong engines. The network that it parsed must therefore match the
signature, and an input that it ignores is an error.
"""

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from mod_edge.bundle.engine_manifest import EngineSettings
from mod_edge.bundle.shape_ranges import OptimizationProfiles
from mod_edge.errors import BackendError, ExportError
from mod_edge.native.native_path import native_path
from mod_edge.native.trt import (
    DATA_TYPES,
    LogLine,
    TensorRT,
    builder_config,
    network_flags,
    num_cache_updates,
    progress_monitor,
    set_timing_cache,
    timing_cache_bytes,
)
from mod_edge.plan.signature import GraphSignature, TensorSpec
from mod_edge.stop_signals import stop_signals

# The engine ignores an input that its network never reads. The parser accepts Attention's
# nonpad_kv_seqlen without reading it; only this warning, at compilation, shows it.
UNUSED_INPUT = re.compile(r"unused input|is unused or used only at compile-time", re.IGNORECASE)
# int64 is the signature's dtype, and TensorRT 10 and later take it unchanged.
BENIGN_WARNING = re.compile(r"Make sure (input|output) \S+ has Int64 binding", re.IGNORECASE)
# Follows every error where there is no driver, and is unrelated to it.
NO_DRIVER = re.compile(r"^.*catchCudaError.*cudaError 35\b.*$", re.MULTILINE)
SOURCE_PLACE = re.compile(r" In \w+ at \S+?:\d+")  # in TensorRT's own source


@dataclass(frozen=True)
class Compiled:
    """A compiled graph.

    Attributes:
        plan: the engine's bytes, as a buffer.
        warnings: TensorRT's warnings without the harmless ones; each line once.
        timing_cache: for the next graph; empty if TensorRT has none.
    """

    plan: Any
    warnings: tuple[str, ...]
    timing_cache: bytes


def compile_graph(
    tensorrt: TensorRT,
    path: Path,
    signature: GraphSignature,
    profiles: OptimizationProfiles,
    settings: EngineSettings,
    *,
    timing_cache: bytes = b"",
) -> Compiled:
    """Compile the ONNX graph at `path`.

    Peak memory is three to four times the graph's weights; all of it is freed afterwards.

    Args:
        tensorrt: from `trt.load`.
        path: the graph, with its weights in the same folder.
        signature: the graph's expected inputs and outputs.
        profiles: shapes of every input of the signature, by profile.
        settings: what to compile for.
        timing_cache: of an earlier graph with the same settings.

    Raises:
        ExportError: TensorRT rejects the graph, parses it into other inputs or outputs than those
            of `signature`, or ignores one of its inputs.
        BackendError: TensorRT cannot compile on this machine.
    """
    with tensorrt.log.collected() as lines, _deferred_signals() as pending:
        try:
            builder = tensorrt.api.Builder(tensorrt.native_logger)
        except Exception as exc:  # TypeError from a null pointer: usually no GPU for TensorRT
            raise BackendError(
                f"{tensorrt.name} cannot compile here: {_first_error(lines) or exc}; see: "
                "mod-edge doctor"
            ) from exc
        network = builder.create_network(network_flags(tensorrt))
        # Kept in a variable because it owns the weights, which the build needs.
        parser = tensorrt.api.OnnxParser(network, tensorrt.native_logger)
        if not parser.parse_from_file(native_path(path)):
            raise _rejection(tensorrt, signature, _parser_errors(parser) or _first_error(lines))
        faults = _network_faults(tensorrt, network, signature)
        if faults:
            raise _rejection(tensorrt, signature, "; ".join(faults))
        config = builder_config(
            tensorrt,
            builder,
            compute_capability=settings.compute_capability,
            workspace_mib=settings.workspace_mib,
            builder_optimization_level=settings.builder_optimization_level,
        )
        set_timing_cache(tensorrt, config, timing_cache)
        _add_profiles(builder, config, signature, profiles)
        config.progress_monitor = progress_monitor(tensorrt.api, lambda: bool(pending))
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _rejection(tensorrt, signature, _first_error(lines))
    warnings = dict.fromkeys(line.text for line in lines if not line.is_error)
    for text in warnings:
        if UNUSED_INPUT.search(text):
            raise _rejection(tensorrt, signature, f"it would ignore an input ({text})")
    return Compiled(
        plan,
        tuple(text for text in warnings if not BENIGN_WARNING.search(text)),
        timing_cache_bytes(tensorrt, config),
    )


def _rejection(tensorrt: TensorRT, signature: GraphSignature, reason: str) -> ExportError:
    return ExportError(
        f"{tensorrt.name} cannot compile {signature.file}: {reason}; export the checkpoint again; "
        "if the error persists, it is a bug in mod-edge"
    )


def _parser_errors(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return "; ".join(
        f"node {error.node_name()!r} ({error.node_operator()}): {_clean(error.desc())}"
        if error.node_operator()
        else _clean(error.desc())
        for error in errors
    )


def _first_error(lines: list[LogLine]) -> str:
    """The first error in the log; the others follow from it."""
    errors = (_clean(line.text) for line in lines if line.is_error)
    return next(filter(None, errors), "it gives no reason")


def _clean(text: str) -> str:
    """`text` as one line, without places in TensorRT's source and missing-driver errors."""
    return " ".join(SOURCE_PLACE.sub("", NO_DRIVER.sub("", text)).split())


def _network_faults(tensorrt: TensorRT, network: Any, signature: GraphSignature) -> list[str]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    faults = [
        *_tensor_faults("input", inputs, signature.inputs),
        *_tensor_faults("output", outputs, signature.outputs),
    ]
    faults += [  # would need values in every profile, and a copy to the host in every step
        f"shapes depend on the values of input {tensor.name!r}"
        for tensor in inputs
        if tensor.is_shape_tensor
    ]
    num_updates = num_cache_updates(tensorrt, network)
    if num_updates != len(signature.aliases):
        faults.append(f"{num_updates} updates of a KV cache, wanted {len(signature.aliases)}")
    return faults


def _tensor_faults(what: str, tensors: list[Any], specs: tuple[TensorSpec, ...]) -> list[str]:
    found = {tensor.name: (tensor.dtype.name, tuple(tensor.shape)) for tensor in tensors}
    wanted = {
        spec.name: (
            DATA_TYPES[spec.dtype],
            tuple(-1 if isinstance(dim, str) else dim for dim in spec.dims),
        )
        for spec in specs
    }
    return [
        f"{what} {name!r}: got {_described(found, name)}, wanted {_described(wanted, name)}"
        for name in {**wanted, **found}
        if found.get(name) != wanted.get(name)
    ]


def _described(tensors: dict[str, tuple[str, tuple[int, ...]]], name: str) -> str:
    if name not in tensors:
        return "none"
    dtype, dims = tensors[name]
    return f"{dtype} {list(dims)}"


def _add_profiles(
    builder: Any, config: Any, signature: GraphSignature, profiles: OptimizationProfiles
) -> None:
    for name, inputs in profiles.items():
        profile = builder.create_optimization_profile()
        for tensor, shapes in inputs.items():
            wanted = [shapes.min, shapes.opt, shapes.max]
            profile.set_shape(tensor, *wanted)
            if [tuple(shape) for shape in profile.get_shape(tensor)] != wanted:
                raise ExportError(
                    f"{signature.file}: profile {name} does not take {wanted} for {tensor!r}; "
                    "this is a bug in mod-edge"
                )
        if config.add_optimization_profile(profile) < 0:
            raise ExportError(
                f"{signature.file}: TensorRT does not take optimization profile {name}, {inputs}; "
                "this is a bug in mod-edge"
            )


@contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Collect the stop signals in a list while the block runs; raise the first one afterwards.

    TensorRT swallows exceptions raised inside its callbacks, KeyboardInterrupt included: a Ctrl-C
    that is not deferred would be lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []  # only the main thread receives signals
        return
    pending: list[int] = []

    def defer(number: int, _frame: FrameType | None) -> None:
        pending.append(number)

    previous = {number: signal.signal(number, defer) for number in stop_signals()}
    try:
        yield pending
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if pending:
            signal.raise_signal(pending[0])
