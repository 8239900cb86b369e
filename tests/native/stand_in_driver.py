"""A stand-in for `cuda.bindings.runtime` on machines without a GPU, in host memory.

A stream runs nothing until the host waits, which is as late as CUDA may be: reading a download too
early or overwriting an upload's source too soon gives wrong numbers. The stand-in counts calls, and
raises `MisuseError` where a GPU would crash or return garbage.
"""

# ruff: noqa: N802, N815 - the names are CUDA's

import ctypes
from collections import Counter, deque
from enum import IntEnum
from types import SimpleNamespace

import numpy as np

ALIGNMENT = 256
STREAM = 7  # the handle of the only stream
CACHE_BYTES = 2**16
POISON = 0xFF  # a NaN in every floating-point type, and -1 as an integer


class MisuseError(AssertionError):
    """A call that no correct program makes."""


class Error(IntEnum):
    """Values as in CUDA's headers."""

    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class MemcpyKind(IntEnum):
    """Directions of a copy."""

    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class CaptureMode(IntEnum):
    """Which threads' calls a capture forbids."""

    cudaStreamCaptureModeThreadLocal = 1


class Event:
    """An event; one that was never recorded counts as reached."""

    is_reached = True


class Graph:
    """Captured work, and how many launches are running."""

    def __init__(self, work):
        self.work, self.num_running, self.is_alive = work, 0, True


class Block:
    """Aligned host memory in place of device or pinned memory."""

    def __init__(self, size_bytes):
        store = np.full(size_bytes + ALIGNMENT, POISON, np.uint8)
        offset = -store.ctypes.data % ALIGNMENT
        self.array = store[offset : offset + size_bytes]
        self.address, self.size_bytes = self.array.ctypes.data, size_bytes

    def holds(self, address, size_bytes):
        return self.address <= address and address + size_bytes <= self.address + self.size_bytes


class StandInCudart:
    """One GPU with one stream; see the module."""

    cudaError_t = Error
    cudaMemcpyKind = MemcpyKind
    cudaStreamCaptureMode = CaptureMode
    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2

    def __init__(self, *, memory_bytes=2**30):
        self.memory_bytes = memory_bytes
        self.calls = Counter()
        self.last_upload_bytes = 0
        self.num_blocking_waits = 0  # for events that were not reached yet
        self.failures = {}  # by function, the status of its next call
        self.fail_at = {}  # by function, the number of the call that fails
        self.device, self.pinned = {}, {}
        self.events, self.graphs, self.streams = [], [], 0
        self._freed = []  # kept, so that no address is used twice
        self._queue = deque()
        self._capture = None
        self._is_capture_valid = True

    # ---- for tests and the stand-in for TensorRT ----

    @property
    def is_capturing(self):
        return self._capture is not None

    @property
    def num_live(self):
        """The number of live allocations, events, graphs and streams."""
        return (
            len(self.device)
            + len(self.pinned)
            + len(self.events)
            + sum(graph.is_alive for graph in self.graphs)
            + self.streams
        )

    def submit(self, work, while_captured=lambda: None):
        """Append to the stream or graph; `while_captured` is called at every launch."""
        if self._capture is None:
            self._queue.append(work)
        else:
            self._capture.append((work, while_captured))

    def invalidate_capture(self):
        self._is_capture_valid = False

    def require_device(self, address, size_bytes, what):
        if size_bytes and not any(
            block.holds(address, size_bytes) for block in self.device.values()
        ):
            raise MisuseError(f"{what}: {size_bytes} bytes at {address:#x} are not device memory")

    def require_pinned(self, address, size_bytes, what):
        if not any(block.holds(address, size_bytes) for block in self.pinned.values()):
            raise MisuseError(f"{what}: {size_bytes} bytes at {address:#x} are not pinned")

    def read(self, address, shape, dtype):
        """A copy of device memory after all work on the stream."""
        self.run_all()
        size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.require_device(address, size_bytes, "read")
        return array_at(address, shape, dtype).copy()

    def write(self, address, array):
        """Write device memory after all work on the stream."""
        self.run_all()
        self.require_device(address, array.nbytes, "write")
        array_at(address, array.shape, array.dtype)[...] = array

    def run_all(self):
        while self._queue:
            self._queue.popleft()()

    # ---- CUDA ----

    def cudaGetDeviceCount(self):
        return self._answer("cudaGetDeviceCount", lambda: 1)

    def cudaSetDevice(self, device):
        return self._answer("cudaSetDevice")

    def cudaGetDeviceProperties(self, device):
        properties = SimpleNamespace(
            name=b"Stand-in GPU\0\0", major=8, minor=9, l2CacheSize=CACHE_BYTES
        )
        return self._answer("cudaGetDeviceProperties", lambda: properties)

    def cudaMemGetInfo(self):
        used = sum(block.size_bytes for block in self.device.values())
        return Error.cudaSuccess, self.memory_bytes - used, self.memory_bytes

    def cudaGetLastError(self):
        return (Error.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags):
        return self._answer("cudaStreamCreateWithFlags", self._make_stream)

    def cudaStreamDestroy(self, stream):
        if self._queue:
            raise MisuseError("the stream is destroyed while it runs")
        self.streams -= 1
        return self._answer("cudaStreamDestroy")

    def cudaStreamSynchronize(self, stream):
        require_stream(stream)
        if self.is_capturing:
            return self._refuse_capture()
        self.run_all()
        return self._answer("cudaStreamSynchronize")

    def cudaMalloc(self, size):
        if self.is_capturing:
            return (*self._refuse_capture(), None)
        if size > self.cudaMemGetInfo()[1]:
            return Error.cudaErrorMemoryAllocation, None
        return self._answer("cudaMalloc", lambda: self._take(self.device, size))

    def cudaFree(self, devPtr):
        self.run_all()
        self._give_back(self.device, devPtr)
        return self._answer("cudaFree")

    def cudaHostAlloc(self, size, flags):
        return self._answer("cudaHostAlloc", lambda: self._take(self.pinned, size))

    def cudaFreeHost(self, ptr):
        self.run_all()
        self._give_back(self.pinned, ptr)
        return self._answer("cudaFreeHost")

    def cudaMemsetAsync(self, devPtr, value, count, stream):
        require_stream(stream)
        self.require_device(devPtr, count, "memset")
        self.submit(lambda: ctypes.memset(devPtr, value, count))
        return self._answer("cudaMemsetAsync")

    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        require_stream(stream)
        self._check_copy(dst, src, count, kind)
        if kind == MemcpyKind.cudaMemcpyHostToDevice:
            self.last_upload_bytes = count

        def work():
            self._check_copy(dst, src, count, kind)
            ctypes.memmove(dst, src, count)

        self.submit(work)
        return self._answer("cudaMemcpyAsync", kind=kind)

    def cudaMemcpy2DAsync(self, dst, dpitch, src, spitch, width, height, kind, stream):
        require_stream(stream)
        if kind != MemcpyKind.cudaMemcpyDeviceToDevice or not width <= min(dpitch, spitch):
            raise MisuseError(f"a copy of {width} bytes per row, pitches {dpitch} and {spitch}")
        rows = [(dst + row * dpitch, src + row * spitch) for row in range(height)]
        for target, source in rows:
            self._check_copy(target, source, width, kind)
        for target, _ in rows:
            if any(overlap(target, width, source, width) for _, source in rows):
                raise MisuseError("a copy of rows onto themselves")

        def work():
            for target, source in rows:
                self._check_copy(target, source, width, kind)
                ctypes.memmove(target, source, width)

        self.submit(work)
        return self._answer("cudaMemcpy2DAsync")

    def cudaEventCreateWithFlags(self, flags):
        return self._answer("cudaEventCreateWithFlags", lambda: self._keep(self.events, Event()))

    def cudaEventDestroy(self, event):
        self.events.remove(event)
        return self._answer("cudaEventDestroy")

    def cudaEventRecord(self, event, stream):
        require_stream(stream)
        event.is_reached = False
        self.submit(lambda: setattr(event, "is_reached", True))
        return self._answer("cudaEventRecord")

    def cudaEventSynchronize(self, event):
        self.num_blocking_waits += not event.is_reached
        while not event.is_reached:
            self._queue.popleft()()
        return self._answer("cudaEventSynchronize")

    def cudaStreamBeginCapture(self, stream, mode):
        require_stream(stream)
        if self.is_capturing:
            raise MisuseError("a capture within a capture")
        self._capture, self._is_capture_valid = [], True
        return self._answer("cudaStreamBeginCapture")

    def cudaStreamEndCapture(self, stream):
        require_stream(stream)
        work, self._capture = self._capture, None
        if not self._is_capture_valid:
            return Error.cudaErrorStreamCaptureInvalidated, None
        return self._answer("cudaStreamEndCapture", lambda: work)

    def cudaGraphInstantiate(self, graph, flags):
        return self._answer("cudaGraphInstantiate", lambda: self._keep(self.graphs, Graph(graph)))

    def cudaGraphDestroy(self, graph):
        return self._answer("cudaGraphDestroy")

    def cudaGraphLaunch(self, graphExec, stream):
        require_stream(stream)
        if not graphExec.is_alive:
            raise MisuseError("a destroyed graph is launched")
        graphExec.num_running += 1
        for work, while_captured in graphExec.work:
            while_captured()
            self.submit(work)

        def end():
            graphExec.num_running -= 1

        self.submit(end)
        return self._answer("cudaGraphLaunch")

    def cudaGraphExecDestroy(self, graphExec):
        if graphExec.num_running or not graphExec.is_alive:
            raise MisuseError("a graph is destroyed while it runs, or twice")
        graphExec.is_alive = False
        return self._answer("cudaGraphExecDestroy")

    # ---- inside ----

    def _answer(self, name, make=None, *, kind=None):
        """The status and the result of `make`, which is called on success only."""
        self.calls[f"{name} {kind.name}" if kind else name] += 1
        status = self.failures.pop(name, Error.cudaSuccess)
        if self.fail_at.get(name) == self.calls[name]:
            status = Error.cudaErrorIllegalAddress
        if make is None:
            return (status,)
        return status, make() if status == Error.cudaSuccess else None

    def _make_stream(self):
        self.streams += 1
        return STREAM

    def _keep(self, kept, made):
        kept.append(made)
        return made

    def _refuse_capture(self):
        self.invalidate_capture()
        return (Error.cudaErrorStreamCaptureUnsupported,)

    def _take(self, blocks, size_bytes):
        block = Block(size_bytes)
        blocks[block.address] = block
        return block.address

    def _give_back(self, blocks, address):
        if address not in blocks:
            raise MisuseError(f"{address:#x} was not allocated or is free already")
        block = blocks.pop(address)
        block.array[:] = POISON
        self._freed.append(block)

    def _check_copy(self, target, source, size_bytes, kind):
        if kind == MemcpyKind.cudaMemcpyHostToDevice:
            self.require_pinned(source, size_bytes, "upload from")
        else:
            self.require_device(source, size_bytes, "copy from")
        if kind == MemcpyKind.cudaMemcpyDeviceToHost:
            self.require_pinned(target, size_bytes, "download to")
        else:
            self.require_device(target, size_bytes, "copy to")
        if overlap(target, size_bytes, source, size_bytes):
            raise MisuseError(f"a copy of {size_bytes} bytes onto itself")


def require_stream(stream):
    if stream != STREAM:
        raise MisuseError(f"stream {stream} was not created")


def overlap(first, first_bytes, second, second_bytes):
    return first < second + second_bytes and second < first + first_bytes


def array_at(address, shape, dtype):
    """The memory at an address as an array."""
    size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = (ctypes.c_uint8 * size_bytes).from_address(address)
    return np.frombuffer(buffer, dtype, count=int(np.prod(shape))).reshape(shape)
