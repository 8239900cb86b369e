"""One NVIDIA GPU through cuda-python: memory, one stream with copies and events, CUDA graphs.

All CUDA calls of the runtime are made here. All work goes to one stream and runs in the order of
the calls; the host waits only in `synchronize` and `wait`, and to free memory. Addresses are plain
integers. A CUDA error becomes a BackendError with CUDA's name of it.
"""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from mod_edge.errors import BackendError, CacheError
from mod_edge.native.cudart import call, load_cudart
from mod_edge.native.device_calls import DeviceCalls

UInt8Array = npt.NDArray[np.uint8]

ALIGNMENT = 256  # bytes; TensorRT requires it of every address, and cudaMalloc returns it
BYTES_PER_MIB = 2**20

_INSTALL = "install the NVIDIA driver, or use --backend onnx"
_ADVICE = MappingProxyType(
    {
        "cudaErrorInsufficientDriver": f"the NVIDIA driver is missing or too old: {_INSTALL}",
        "cudaErrorStubLibrary": f"only a stub of the NVIDIA driver is installed: {_INSTALL}",
        "cudaErrorNoDevice": "there is no NVIDIA GPU here, or CUDA_VISIBLE_DEVICES hides it; "
        "use --backend onnx",
        "cudaErrorSystemDriverMismatch": "the driver's parts have different versions: restart the "
        "machine after a driver update",
        "cudaErrorMemoryAllocation": "not enough memory: lower --window or --kv-budget, or end "
        "other programs; on a Jetson also drop the page cache (docs/jetson.md)",
        "cudaErrorIllegalAddress": "the GPU's state is lost: start again, and report it",
    }
)


def aligned(size_bytes: int) -> int:
    """`size_bytes` rounded up to `ALIGNMENT`, so that another tensor can follow."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class PinnedBlock:
    """Pinned host memory for asynchronous copies; valid until the driver closes."""

    address: int
    array: UInt8Array


class CudaDriver:
    """The first visible GPU and one stream on it; `close` frees all memory.

    Attributes:
        device_name: product name.
        compute_capability: "89" for 8.9.
        cache_bytes: of the L2 cache.
        stream: its handle.
        calls: that were made so far.
        waited_s: seconds that the host has waited for the device so far.
    """

    def __init__(self, cudart: Any = None) -> None:
        """Open the device.

        Args:
            cudart: stand-in for `cuda.bindings.runtime`; None loads that.

        Raises:
            BackendError: cuda-python is not installed, or no driver or GPU.
        """
        if cudart is None:
            cudart = load_cudart("backend tensorrt needs cuda-python, which does not load")
        self._cudart = cudart
        self._blocks: set[int] = set()
        self._pinned: list[int] = []
        self._events: list[Any] = []
        self._call("cudaGetDeviceCount")  # fails without a driver or device
        self._call("cudaSetDevice", 0)
        properties = self._call("cudaGetDeviceProperties", 0)
        self.device_name: str = properties.name.split(b"\0")[0].decode()
        self.compute_capability = f"{properties.major}{properties.minor}"
        self.cache_bytes: int = properties.l2CacheSize
        self.calls = DeviceCalls()
        self.waited_s = 0.0
        self._free_at_start = self.free_bytes
        # non-blocking: does not wait for the default stream, which other libraries may use
        self._stream = self._call("cudaStreamCreateWithFlags", self._cudart.cudaStreamNonBlocking)
        self.stream = int(self._stream)

    @property
    def free_bytes(self) -> int:
        """Free device memory; on a Jetson, the CPU's too."""
        free, _total = self._call("cudaMemGetInfo")
        return int(free)

    @property
    def used_bytes(self) -> int:
        """How much free memory has shrunk since the device was opened, at least 0.

        Other programs count too, and on a Jetson what the CPU uses.
        """
        return max(0, self._free_at_start - self.free_bytes)

    def malloc(self, size_bytes: int, purpose: str) -> int:
        """Allocate device memory; its address is aligned to `ALIGNMENT`.

        Raises:
            CacheError: not enough memory; the message names `purpose`.
        """
        self.calls.allocations += 1
        try:
            address = int(self._call("cudaMalloc", max(size_bytes, ALIGNMENT)))
        except BackendError as exc:
            if "cudaErrorMemoryAllocation" not in str(exc):
                raise
            free, total = self._cudart.cudaMemGetInfo()[1:]
            raise CacheError(
                f"{self.device_name} has no {_mib(size_bytes)} left for {purpose}: "
                f"{_mib(free)} of {_mib(total)} are free; lower --window or --kv-budget, "
                "or end other programs on the GPU"
            ) from exc
        self._blocks.add(address)
        return address

    def malloc_zeroed(self, size_bytes: int, purpose: str) -> int:
        """Allocate device memory that is zeroed before later work runs."""
        address = self.malloc(size_bytes, purpose)
        try:
            self._call("cudaMemsetAsync", address, 0, size_bytes, self._stream)
        except BackendError:
            self.free(address)
            raise
        return address

    def free(self, address: int) -> None:
        """Free memory from `malloc`; waits for the device."""
        self._blocks.remove(address)
        self._cudart.cudaFree(address)  # status ignored: it would hide an earlier error

    def pinned(self, size_bytes: int) -> PinnedBlock:
        """Allocate pinned host memory, for copies that the host does not wait for."""
        self.calls.allocations += 1
        address = int(self._call("cudaHostAlloc", max(size_bytes, ALIGNMENT), 0))
        self._pinned.append(address)
        buffer = (ctypes.c_uint8 * size_bytes).from_address(address)
        return PinnedBlock(address, np.ctypeslib.as_array(buffer))

    def upload(self, device: int, host: int, size_bytes: int) -> None:
        """Copy from pinned memory to the device; do not write to it until the copy is done."""
        self.calls.uploads += 1
        self._copy(device, host, size_bytes, "cudaMemcpyHostToDevice")

    def download(self, host: int, device: int, size_bytes: int) -> None:
        """Copy from the device to pinned memory; read it after `synchronize`."""
        self.calls.downloads += 1
        self._copy(host, device, size_bytes, "cudaMemcpyDeviceToHost")

    def copy(self, target: int, source: int, size_bytes: int) -> None:
        """Copy within the device; the two ranges must not overlap."""
        self.calls.copies += 1
        self._copy(target, source, size_bytes, "cudaMemcpyDeviceToDevice")

    def copy_rows(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        *,
        width: int,
        height: int,
    ) -> None:
        """Copy `height` runs of `width` bytes within the device, one pitch apart."""
        self.calls.copies += 1
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call(
            "cudaMemcpy2DAsync",
            *(target, target_pitch, source, source_pitch, width, height, kind, self._stream),
        )

    def synchronize(self) -> None:
        """Wait until all work on the stream is done."""
        self.calls.waits += 1
        self._wait("cudaStreamSynchronize", self._stream)

    def make_event(self) -> Any:
        """An event; one that was never recorded counts as reached."""
        event = self._call("cudaEventCreateWithFlags", self._cudart.cudaEventDisableTiming)
        self._events.append(event)
        return event

    def record(self, event: Any) -> None:
        """Record the event after all work on the stream so far."""
        self._call("cudaEventRecord", event, self._stream)

    def wait(self, event: Any) -> None:
        """Wait until the device has reached the event."""
        self.calls.upload_waits += 1
        self._wait("cudaEventSynchronize", event)

    def capture(self, work: Callable[[], None]) -> Any:
        """Capture the work that `work` enqueues as one graph for `launch`, without running it.

        Raises:
            BackendError: a graph cannot hold that work.
        """
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            self._cudart.cudaStreamEndCapture(self._stream)  # ends the stream's capture mode
            self._cudart.cudaGetLastError()
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        """Run a captured graph."""
        self.calls.graph_launches += 1
        self._call("cudaGraphLaunch", graph, self._stream)

    def destroy_graph(self, graph: Any) -> None:
        """Free a captured graph, which must not be running; ignores errors."""
        self._cudart.cudaGraphExecDestroy(graph)

    def drain(self) -> None:
        """Wait until the device is idle, before memory is freed; ignores errors."""
        if self._stream is not None:
            self._cudart.cudaStreamSynchronize(self._stream)

    def close(self) -> None:
        """Wait for the device and free everything; may be called again."""
        if self._stream is None:
            return
        self.drain()
        stream, self._stream = self._stream, None
        for event in self._events:
            self._cudart.cudaEventDestroy(event)
        for address in self._blocks:
            self._cudart.cudaFree(address)
        for address in self._pinned:
            self._cudart.cudaFreeHost(address)
        self._events, self._blocks, self._pinned = [], set(), []
        self._cudart.cudaStreamDestroy(stream)

    def _wait(self, name: str, what: Any) -> None:
        started = time.perf_counter()
        self._call(name, what)
        self.waited_s += time.perf_counter() - started

    def _copy(self, target: int, source: int, size_bytes: int, kind: str) -> None:
        direction = getattr(self._cudart.cudaMemcpyKind, kind)
        self._call("cudaMemcpyAsync", target, source, size_bytes, direction, self._stream)

    def _call(self, name: str, *arguments: object) -> Any:
        return call(self._cudart, name, *arguments, explain=_explain)


def _explain(name: str, error: str) -> str:
    advice = _ADVICE.get(error, "see the CUDA documentation, and report it")
    return f"{name} returned {error}: {advice}"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / BYTES_PER_MIB:,.1f} MiB"
