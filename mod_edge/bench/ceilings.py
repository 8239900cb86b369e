"""What the hardware allows: memory bandwidth and matrix rates, measured on the spot."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.native.matmul_rates import float_flops_per_s, int8_flops_per_s

# The buffer that is read is larger than the caches by this factor, within limits.
CACHES_READ = 4
LEAST_BUFFER_BYTES, MOST_BUFFER_BYTES = 128 * 2**20, 1024 * 2**20
NUM_READS = 7
COPIES_PER_WAIT = 20  # on a GPU


@dataclass(frozen=True)
class Work:
    """What an action has to move and compute at least.

    Attributes:
        num_bytes: of weights, keys and values.
        float_flops: of products in float32; a multiply-add is two.
        int8_flops: of products of 8-bit integers.
    """

    num_bytes: float = 0.0
    float_flops: float = 0.0
    int8_flops: float = 0.0

    def plus(self, other: "Work") -> "Work":
        """Both, one after the other."""
        return Work(
            self.num_bytes + other.num_bytes,
            self.float_flops + other.float_flops,
            self.int8_flops + other.int8_flops,
        )


@dataclass(frozen=True)
class Ceilings:
    """The measured rates of a processor, each the best of several tries.

    Attributes:
        bytes_per_s: of its memory: reading on a CPU, copies (read and written bytes) on a GPU.
        cache_bytes: of the largest cache: what fits in it need not be read from memory.
        float_flops_per_s: of products in float32; None on a GPU, where it is not measured.
        int8_flops_per_s: of products of 8-bit integers; likewise.
    """

    bytes_per_s: float
    cache_bytes: int
    float_flops_per_s: float | None = None
    int8_flops_per_s: float | None = None

    def least_ms(self, work: Work) -> float | None:
        """Milliseconds that the work takes at these rates: moving or computing, the longer.

        None if the bytes fit in the cache and no rate of products is known.
        """
        is_cached = work.num_bytes <= self.cache_bytes
        moving_s = 0.0 if is_cached else work.num_bytes / self.bytes_per_s
        computing_s = _seconds(work.float_flops, self.float_flops_per_s)
        computing_s += _seconds(work.int8_flops, self.int8_flops_per_s)
        return 1000 * max(computing_s, moving_s) or None

    def best(self, other: "Ceilings") -> "Ceilings":
        """The higher of each rate; both are of one processor."""
        return Ceilings(
            max(self.bytes_per_s, other.bytes_per_s),
            self.cache_bytes,
            _higher(self.float_flops_per_s, other.float_flops_per_s),
            _higher(self.int8_flops_per_s, other.int8_flops_per_s),
        )

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return {name: value and round(value) for name, value in asdict(self).items()}


def measure_ceilings(num_threads: int, cache_bytes: int) -> Ceilings:
    """The rates of this CPU with as many threads as ONNX Runtime has (2 s).

    Raises:
        BackendError: this onnxruntime has no exact products of 8-bit integers on this CPU.
    """
    return Ceilings(
        read_bytes_per_s(num_threads, _buffer_bytes(cache_bytes)),
        cache_bytes,
        float_flops_per_s(),
        int8_flops_per_s(),
    )


def measure_gpu_ceilings(driver: CudaDriver) -> Ceilings:
    """The bandwidth of this GPU's memory.

    Raises:
        CacheError: not enough memory is free for a copy.
    """
    copied = copied_bytes_per_s(driver, _buffer_bytes(driver.cache_bytes))
    return Ceilings(copied, driver.cache_bytes)


def copied_bytes_per_s(driver: CudaDriver, size_bytes: int) -> float:
    """How fast a GPU copies this many bytes within its memory: bytes read and written per second.

    Raises:
        CacheError: not enough memory is free.
    """
    best_s = float("inf")
    with ExitStack() as release:
        source = driver.malloc(size_bytes, "measuring copies")
        release.callback(driver.free, source)
        target = driver.malloc(size_bytes, "measuring copies")
        release.callback(driver.free, target)
        for _ in range(NUM_READS):
            driver.synchronize()
            started = time.perf_counter()
            for _ in range(COPIES_PER_WAIT):
                driver.copy(target, source, size_bytes)
            driver.synchronize()
            best_s = min(best_s, time.perf_counter() - started)
    return 2 * COPIES_PER_WAIT * size_bytes / best_s


def read_bytes_per_s(num_threads: int, buffer_bytes: int) -> float:
    """Bytes per second that the threads read together, each a part of one buffer."""
    buffer = np.ones(buffer_bytes // 4, np.float32)
    parts = np.array_split(buffer, num_threads)
    best_s = float("inf")
    with ThreadPoolExecutor(num_threads) as threads:
        for _ in range(NUM_READS):
            started = time.perf_counter()
            list(threads.map(np.sum, parts))  # numpy lets other threads run meanwhile
            best_s = min(best_s, time.perf_counter() - started)
    return buffer.nbytes / best_s


def _seconds(flops: float, flops_per_s: float | None) -> float:
    return flops / flops_per_s if flops_per_s else 0.0


def _higher(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)


def _buffer_bytes(cache_bytes: int) -> int:
    return min(max(CACHES_READ * cache_bytes, LEAST_BUFFER_BYTES), MOST_BUFFER_BYTES)
