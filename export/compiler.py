"""One ONNX graph to one engine: parsed, held against its signature, compiled, its warnings judged.

TensorRT builds engines that are silently wrong where it does not know better. What it has read must
therefore be what the signature says, and an input that it ignores is an error.
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

# An input that the network never reads, so that the engine ignores what it is fed: the parser takes
# Attention's nonpad_kv_seqlen like that, and only this warning, at compilation, tells.
UNUSED_INPUT = re.compile(r"unused input|is unused or used only at compile-time", re.IGNORECASE)
# int64 is what the signature says, and TensorRT 10 and later take it as it is.
BENIGN_WARNING = re.compile(r"Make sure (input|output) \S+ has Int64 binding", re.IGNORECASE)
# Follows every error where there is no driver, and has nothing to do with it.
NO_DRIVER = re.compile(r"^.*catchCudaError.*cudaError 35\b.*$", re.MULTILINE)
SOURCE_PLACE = re.compile(r" In \w+ at \S+?:\d+")  # in TensorRT's own source


@dataclass(frozen=True)
class Compiled:
    """A compiled graph.

    Attributes:
        plan: the engine's bytes, as a buffer.
        warnings: what TensorRT warned of, but for what is known to be harmless; each line once.
        timing_cache: for the next graph; empty where there is none.
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

    Peak memory is three to four times the graph's weights, and all of it is free again afterwards.

    Args:
        tensorrt: from `trt.load`.
        path: the graph; its weights lie beside it.
        signature: what the graph has promised to be.
        profiles: shapes of every input of the signature, profile by profile.
        settings: what to compile for.
        timing_cache: of an earlier graph with the same settings.

    Raises:
        ExportError: TensorRT refuses the graph, reads another one out of it than `signature`, or
            ignores one of its inputs.
        BackendError: TensorRT cannot compile on this machine.
    """
    with tensorrt.log.collected() as lines, _held_signals() as held:
        try:
            builder = tensorrt.api.Builder(tensorrt.native_logger)
        except Exception as exc:  # TypeError, of a null pointer: no GPU for TensorRT, most often
            raise BackendError(
                f"{tensorrt.name} cannot compile here: {_said(lines) or exc}; see: mod-edge doctor"
            ) from exc
        network = builder.create_network(network_flags(tensorrt))
        # Named because it owns the weights: they must be there until the engine is.
        parser = tensorrt.api.OnnxParser(network, tensorrt.native_logger)
        if not parser.parse_from_file(str(path)):
            raise _refusal(tensorrt, signature, _parser_errors(parser) or _said(lines))
        faults = _network_faults(tensorrt, network, signature)
        if faults:
            raise _refusal(tensorrt, signature, "; ".join(faults))
        config = builder_config(tensorrt, builder, settings)
        set_timing_cache(tensorrt, config, timing_cache)
        _add_profiles(builder, config, signature, profiles)
        config.progress_monitor = progress_monitor(tensorrt.api, lambda: bool(held))
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refusal(tensorrt, signature, _said(lines))
    warnings = dict.fromkeys(line.text for line in lines if not line.is_error)
    for text in warnings:
        if UNUSED_INPUT.search(text):
            raise _refusal(tensorrt, signature, f"it would ignore an input ({text})")
    return Compiled(
        plan,
        tuple(text for text in warnings if not BENIGN_WARNING.search(text)),
        timing_cache_bytes(tensorrt, config),
    )


def _refusal(tensorrt: TensorRT, signature: GraphSignature, reason: str) -> ExportError:
    return ExportError(
        f"{tensorrt.name} cannot compile {signature.file}: {reason}; export the checkpoint again, "
        "and if that does not help it is a bug of mod-edge"
    )


def _parser_errors(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return "; ".join(
        f"node {error.node_name()!r} ({error.node_operator()}): {_clean(error.desc())}"
        if error.node_operator()
        else _clean(error.desc())
        for error in errors
    )


def _said(lines: list[LogLine]) -> str:
    """The first error; the others follow from it."""
    errors = (_clean(line.text) for line in lines if line.is_error)
    return next(filter(None, errors), "it gives no reason")


def _clean(text: str) -> str:
    """One line, without places in TensorRT's source and what only a missing driver adds."""
    return " ".join(SOURCE_PLACE.sub("", NO_DRIVER.sub("", text)).split())


def _network_faults(tensorrt: TensorRT, network: Any, signature: GraphSignature) -> list[str]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    faults = [
        *_tensor_faults("input", inputs, signature.inputs),
        *_tensor_faults("output", outputs, signature.outputs),
    ]
    faults += [  # would want values in every profile, and a copy to the host in every step
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
        f"{what} {name!r} is {_described(found, name)}, wanted {_described(wanted, name)}"
        for name in {**wanted, **found}
        if found.get(name) != wanted.get(name)
    ]


def _described(tensors: dict[str, tuple[str, tuple[int, ...]]], name: str) -> str:
    if name not in tensors:
        return "not there"
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
                    "that is a bug of mod-edge"
                )
        if config.add_optimization_profile(profile) < 0:
            raise ExportError(
                f"{signature.file}: TensorRT does not take optimization profile {name}, {inputs}; "
                "that is a bug of mod-edge"
            )


@contextmanager
def _held_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM in a list while the block runs; the first takes its course behind it.

    TensorRT swallows what Python raises inside its callbacks, KeyboardInterrupt too: a Ctrl-C that
    is not held would be lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []  # signals come to the main thread alone
        return
    held: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        held.append(number)

    previous = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield held
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if held:
            signal.raise_signal(held[0])
