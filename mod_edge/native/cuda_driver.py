"""One NVIDIA GPU through cuda-python: memory, one stream with its copies and events, graphs.

The only file of the runtime that asks CUDA for anything. All work goes to one stream, so it runs in
the order in which it is asked for; only `synchronize` and `wait` let the host wait. Addresses are
plain integers. Whatever CUDA refuses is a BackendError with CUDA's own name of the error.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from mod_edge.errors import BackendError, CacheError
from mod_edge.native.cudart import call, load_cudart

UInt8Array = npt.NDArray[np.uint8]

ALIGNMENT = 256  # bytes; what TensorRT wants of every address it is given, and cudaMalloc gives
BYTES_PER_MIB = 2**20

_INSTALL = "install the NVIDIA driver, or take --backend onnx"
_ADVICE = MappingProxyType(
    {
        "cudaErrorInsufficientDriver": f"no NVIDIA driver runs here, or an old one: {_INSTALL}",
        "cudaErrorStubLibrary": f"only a stub of the NVIDIA driver is installed: {_INSTALL}",
        "cudaErrorNoDevice": "there is no NVIDIA GPU here, or CUDA_VISIBLE_DEVICES hides it; "
        "take --backend onnx",
        "cudaErrorSystemDriverMismatch": "the driver's parts are of different versions: restart "
        "after a driver update",
        "cudaErrorIllegalAddress": "the GPU's state is lost: start again, and report it",
    }
)


def aligned(size_bytes: int) -> int:
    """`size_bytes` rounded up, so that what follows may be bound as a tensor of its own."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class PinnedBlock:
    """Host memory that the device copies from and to by itself; valid until the driver closes."""

    address: int
    array: UInt8Array


class CudaDriver:
    """The first visible GPU and one stream on it; `close` frees all that was taken."""

    def __init__(self, cudart: Any = None) -> None:
        """Open the device.

        Args:
            cudart: what stands for `cuda.bindings.runtime`; that itself where None.

        Raises:
            BackendError: cuda-python is not installed, or there is no driver or no GPU.
        """
        if cudart is None:
            cudart = load_cudart("backend tensorrt needs cuda-python, which does not load")
        self._cudart = cudart
        self._blocks: set[int] = set()
        self._pinned: list[int] = []
        self._events: list[Any] = []
        self._call("cudaGetDeviceCount")  # fails where there is no driver or no device
        self._call("cudaSetDevice", 0)
        properties = self._call("cudaGetDeviceProperties", 0)
        self.device_name: str = properties.name.split(b"\0")[0].decode()
        self.compute_capability = f"{properties.major}{properties.minor}"
        # One that does not wait for the default stream, which other libraries here may use.
        self._stream = self._call("cudaStreamCreateWithFlags", self._cudart.cudaStreamNonBlocking)
        self.stream = int(self._stream)

    def malloc(self, size_bytes: int, purpose: str) -> int:
        """The address of that much device memory, aligned to `ALIGNMENT`.

        Raises:
            CacheError: there is not so much; `purpose` tells people for what.
        """
        try:
            address = int(self._call("cudaMalloc", max(size_bytes, ALIGNMENT)))
        except BackendError as exc:
            if "cudaErrorMemoryAllocation" not in str(exc):
                raise
            free, total = self._cudart.cudaMemGetInfo()[1:]
            raise CacheError(
                f"{self.device_name} has no {_mib(size_bytes)} left for {purpose}: "
                f"{_mib(free)} of {_mib(total)} are free; take a smaller --window or --kv-budget, "
                "or end what else uses the GPU"
            ) from exc
        self._blocks.add(address)
        return address

    def malloc_zeroed(self, size_bytes: int, purpose: str) -> int:
        """The same, filled with zeros before anything that is asked for later runs."""
        address = self.malloc(size_bytes, purpose)
        try:
            self._call("cudaMemsetAsync", address, 0, size_bytes, self._stream)
        except BackendError:
            self.free(address)
            raise
        return address

    def free(self, address: int) -> None:
        """Free what `malloc` gave; waits for the device, which may have failed before."""
        self._blocks.remove(address)
        self._cudart.cudaFree(address)  # its answer would hide the error that came first

    def pinned(self, size_bytes: int) -> PinnedBlock:
        """Host memory for copies that the host does not wait for."""
        address = int(self._call("cudaHostAlloc", max(size_bytes, ALIGNMENT), 0))
        self._pinned.append(address)
        buffer = (ctypes.c_uint8 * size_bytes).from_address(address)
        return PinnedBlock(address, np.ctypeslib.as_array(buffer))

    def upload(self, device: int, host: int, size_bytes: int) -> None:
        """Copy from pinned memory to the device; the host must leave it alone until done."""
        self._copy(device, host, size_bytes, "cudaMemcpyHostToDevice")

    def download(self, host: int, device: int, size_bytes: int) -> None:
        """Copy from the device to pinned memory; to be read after `synchronize`."""
        self._copy(host, device, size_bytes, "cudaMemcpyDeviceToHost")

    def copy(self, target: int, source: int, size_bytes: int) -> None:
        """Copy within the device; the two ranges must not overlap."""
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
        """Copy `height` runs of `width` bytes within the device, each run a pitch further on."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call(
            "cudaMemcpy2DAsync",
            *(target, target_pitch, source, source_pitch, width, height, kind, self._stream),
        )

    def synchronize(self) -> None:
        """Wait until all that was asked for is done."""
        self._call("cudaStreamSynchronize", self._stream)

    def make_event(self) -> Any:
        """A mark to set in the stream; one that was never set counts as reached."""
        event = self._call("cudaEventCreateWithFlags", self._cudart.cudaEventDisableTiming)
        self._events.append(event)
        return event

    def record(self, event: Any) -> None:
        """Set the mark behind all that was asked for so far."""
        self._call("cudaEventRecord", event, self._stream)

    def wait(self, event: Any) -> None:
        """Wait until the device has reached the mark."""
        self._call("cudaEventSynchronize", event)

    def capture(self, work: Callable[[], None]) -> Any:
        """What `work` asks for as one graph, which `launch` runs; nothing runs yet.

        Raises:
            BackendError: `work` asks for something that no graph can hold.
        """
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            self._cudart.cudaStreamEndCapture(self._stream)  # or the stream would stay in capture
            self._cudart.cudaGetLastError()
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        """Run a captured graph."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def destroy_graph(self, graph: Any) -> None:
        """Free a captured graph, which must not be running; the device may have failed before."""
        self._cudart.cudaGraphExecDestroy(graph)

    def drain(self) -> None:
        """Wait until the device does no more, before anything is freed; it may have failed."""
        if self._stream is not None:
            self._cudart.cudaStreamSynchronize(self._stream)

    def close(self) -> None:
        """Wait for the device and free all that is left; once is enough."""
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

    def _copy(self, target: int, source: int, size_bytes: int, kind: str) -> None:
        direction = getattr(self._cudart.cudaMemcpyKind, kind)
        self._call("cudaMemcpyAsync", target, source, size_bytes, direction, self._stream)

    def _call(self, name: str, *arguments: object) -> Any:
        return call(self._cudart, name, *arguments, explain=_explain)


def _explain(name: str, error: str) -> str:
    advice = _ADVICE.get(error, "see the CUDA documentation for it, and report it")
    return f"{name} gives {error}: {advice}"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / BYTES_PER_MIB:,.1f} MiB"
