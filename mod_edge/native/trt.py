"""One interface to TensorRT and TensorRT-RTX: the only module that depends on their versions.

Neither is imported before `load` needs it, and torch and onnx never are: a device can compile its
engines without them. Differences between versions are detected in the API (hasattr).

TensorRT uses the first logger of a process for all its objects, so `load` makes one per process.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from mod_edge.errors import BackendError
from mod_edge.native.installed import install_command
from mod_edge.plan.targets import KV_CACHE_UPDATE_VERSION, Target

NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
OLDEST_TENSORRT = (10, 3)  # JetPack 6's; older versions are untested
DATA_TYPES = {  # numpy's names to TensorRT's
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int64": "INT64",
    "uint8": "UINT8",
}

logger = logging.getLogger(__name__)


class LogLine(NamedTuple):
    """An error or a warning from TensorRT."""

    is_error: bool
    text: str


class Log:
    """Collects TensorRT's warnings and errors, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reader = threading.Lock()
        self._lines: list[LogLine] | None = None

    def add(self, line: LogLine) -> None:
        """Add a line to the current `collected` block, else pass it to Python's logging."""
        with self._lock:
            if self._lines is not None:
                self._lines.append(line)
                return
        logger.log(logging.ERROR if line.is_error else logging.WARNING, "%s", line.text)

    @contextmanager
    def collected(self) -> Iterator[list[LogLine]]:
        """A list that receives all lines added during the block; one block at a time."""
        with self._reader:
            lines: list[LogLine] = []
            with self._lock:
                self._lines = lines
            try:
                yield lines
            finally:
                with self._lock:
                    self._lines = None


@dataclass(frozen=True)
class TensorRT:
    """An imported TensorRT.

    Attributes:
        compiler: name of its Python module, a key of `NAMES`.
        api: the module.
        version: in full.
        log: receives its messages.
        native_logger: the process's only `ILogger`, which fills `log`.
    """

    compiler: str
    api: Any
    version: str
    log: Log
    native_logger: Any

    @property
    def name(self) -> str:
        """Name and version, for people."""
        return f"{NAMES[self.compiler]} {self.version}"

    @property
    def release(self) -> tuple[int, ...]:
        """Major and minor version."""
        return tuple(int(number) for number in re.findall(r"\d+", self.version)[:2])

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT-RTX, which compiles ahead of time without a GPU."""
        return self.compiler == "tensorrt_rtx"

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """Those that it can compile for; empty if only for this machine's GPU."""
        if not self.is_rtx:
            return ()
        members = self.api.ComputeCapability.__members__
        return tuple(name[2:] for name in members if name.startswith("SM"))


@cache
def load(compiler: str) -> TensorRT:
    """The TensorRT whose Python module is `compiler`.

    Raises:
        BackendError: it cannot be imported; says how to install it.
    """
    try:
        api = import_module(compiler)
        version = str(api.__version__)
    except Exception as exc:  # a broken native library may raise any exception
        reason = "" if isinstance(exc, ModuleNotFoundError) else f" ({exc})"
        raise BackendError(
            f"{NAMES[compiler]} cannot be imported here{reason}; {how_to_install(compiler)}"
        ) from exc
    log = Log()
    return TensorRT(compiler, api, version, log, _native_logger(api, log))


def _native_logger(api: Any, log: Log) -> Any:
    class NativeLogger(api.ILogger):  # type: ignore[misc]  # imported at run time
        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity <= api.ILogger.Severity.WARNING:
                log.add(LogLine(severity < api.ILogger.Severity.WARNING, text))

    return NativeLogger()


# ---- compiling ----


def how_to_install(compiler: str) -> str:
    """Advice for a machine that lacks TensorRT or TensorRT-RTX, one of `NAMES`."""
    if compiler == "tensorrt_rtx":
        return f"install it with: {install_command('rtx')}"
    return (
        "a Jetson has it in JetPack: apt-get install python3-libnvinfer, and make the virtual "
        "environment with python3 -m venv --system-site-packages; elsewhere: "
        + install_command("tensorrt")
    )


def require_target(tensorrt: TensorRT, target: Target) -> None:
    """Check that this version has the ops of the target's graphs.

    Raises:
        BackendError: it does not; names the target that fits, or what to upgrade.
    """
    if not tensorrt.is_rtx and tensorrt.release < OLDEST_TENSORRT:
        raise BackendError(
            f"{tensorrt.name} is too old, wanted {_dotted(OLDEST_TENSORRT)} or newer; "
            f"{how_to_install(tensorrt.compiler)}"
        )
    if target.dialect != "in_place" or _has_kv_cache_update(tensorrt):
        return
    advice = (
        "upgrade it with: pip install -U tensorrt-rtx"
        if tensorrt.is_rtx
        else "export the checkpoint again with --target tensorrt-delta"
    )
    raise BackendError(
        f"{tensorrt.name} lacks the KV cache ops of target {target.name} (TensorRT has them since "
        f"{_dotted(KV_CACHE_UPDATE_VERSION)}); {advice}"
    )


def _has_kv_cache_update(tensorrt: TensorRT) -> bool:
    return hasattr(tensorrt.api.INetworkDefinition, "add_kv_cache_update")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def network_flags(tensorrt: TensorRT) -> int:
    """Strongly typed; since version 11 that is the only mode, and the flag may be missing."""
    flags = tensorrt.api.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0


def num_cache_updates(tensorrt: TensorRT, network: Any) -> int:
    """Layers that write into a KV cache; 0 if the version has no such layer type."""
    update = getattr(tensorrt.api.LayerType, "KV_CACHE_UPDATE", None)
    if update is None:
        return 0
    return sum(network.get_layer(index).type == update for index in range(network.num_layers))


def builder_config(
    tensorrt: TensorRT,
    builder: Any,
    *,
    compute_capability: str,
    workspace_mib: int,
    builder_optimization_level: int,
) -> Any:
    """An `IBuilderConfig` without optimization profiles; the arguments: see `EngineSettings`."""
    api = tensorrt.api
    config = builder.create_builder_config()
    config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, workspace_mib * 2**20)
    config.builder_optimization_level = builder_optimization_level
    # A step's graphs run one after another in one stream that is captured as one CUDA graph.
    config.max_aux_streams = 0
    # With TF32's 10 bits of mantissa a router would keep other tokens than the reference does.
    config.clear_flag(api.BuilderFlag.TF32)
    if hasattr(api.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # A CUDA graph cannot capture a context that allocates memory while it runs.
        config.set_flag(api.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if tensorrt.is_rtx:
        config.num_compute_capabilities = 1
        wanted = getattr(api.ComputeCapability, f"SM{compute_capability}")
        config.set_compute_capability(wanted, 0)
    return config


def set_timing_cache(tensorrt: TensorRT, config: Any, stored: bytes) -> None:
    """Use the stored cache, or a new one if that is damaged or from another device.

    Not for TensorRT-RTX, which does not time kernels and would require a GPU for the cache.
    """
    if tensorrt.is_rtx:
        return
    for data in (stored, b""):
        timing_cache = config.create_timing_cache(data)
        if timing_cache and config.set_timing_cache(timing_cache, ignore_mismatch=False):
            return


def timing_cache_bytes(tensorrt: TensorRT, config: Any) -> bytes:
    """The timing cache after a graph was compiled; empty for TensorRT-RTX."""
    return b"" if tensorrt.is_rtx else bytes(config.get_timing_cache().serialize())


def progress_monitor(api: Any, must_stop: Callable[[], bool]) -> Any:
    """An `IProgressMonitor` that stops a compilation at its next step if `must_stop()`."""

    class Monitor(api.IProgressMonitor):  # type: ignore[misc]  # imported at run time
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str, num_steps: int) -> None: ...

        def step_complete(self, phase: str, step: int) -> bool:
            return not must_stop()

        def phase_finish(self, phase: str) -> None: ...

    return Monitor()


# ---- running ----
# Engines and contexts are TensorRT's objects.


def is_aliased(engine: Any, output: str, past: str) -> bool:
    """Whether the engine writes `output` into the buffer of its input `past`."""
    asks = getattr(engine, "get_aliased_input_tensor", None)
    return asks is not None and asks(output) == past


def scratch_bytes(engine: Any) -> int:
    """Device memory that a context of this engine needs while it runs, in any profile."""
    if hasattr(engine, "device_memory_size_v2"):
        return int(engine.device_memory_size_v2)
    return int(engine.device_memory_size)


def set_scratch(context: Any, address: int, size_bytes: int) -> None:
    """Set a context's scratch memory; contexts that never run at the same time may share it."""
    if hasattr(context, "set_device_memory"):
        context.set_device_memory(address, size_bytes)
    else:
        context.device_memory = address


def is_capturable(context: Any, stream: int) -> bool:
    """Whether a CUDA graph can capture the context, according to TensorRT."""
    asks = getattr(context, "is_stream_capturable", None)
    return asks is None or bool(asks(stream))


def context_settings(tensorrt: TensorRT, engine: Any, kernels: Any, *, is_captured: bool) -> Any:
    """The argument of `create_execution_context`, with scratch memory set by the caller.

    Args:
        tensorrt: the engine's.
        engine: the engine.
        kernels: from `new_kernel_cache`, or None.
        is_captured: whether the context will be captured into a CUDA graph. TensorRT-RTX runs a new
            shape with general kernels while it compiles better ones; a graph would keep the general
            kernels, so its context waits for the better ones.
    """
    api = tensorrt.api
    strategy = api.ExecutionContextAllocationStrategy.USER_MANAGED
    if kernels is None:
        return strategy
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    config.set_runtime_cache(kernels)
    specialization = api.DynamicShapesKernelSpecializationStrategy
    config.dynamic_shapes_kernel_specialization_strategy = (
        specialization.EAGER if is_captured else specialization.LAZY
    )
    return config


def new_kernel_cache(tensorrt: TensorRT, engine: Any) -> Any:
    """TensorRT-RTX's cache of kernels compiled for this GPU; None for TensorRT."""
    return engine.create_runtime_config().create_runtime_cache() if tensorrt.is_rtx else None
