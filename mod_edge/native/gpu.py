"""This machine's NVIDIA GPU."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from mod_edge.native.cudart import call, load_cudart


@dataclass(frozen=True)
class Gpu:
    """The first visible GPU.

    Attributes:
        name: product name.
        compute_capability: "89" for 8.9.
        memory_bytes: total; on a Jetson shared with the CPU.
        cuda: newest CUDA version that the driver supports, "13.0".
    """

    name: str
    compute_capability: str
    memory_bytes: int
    cuda: str


def find_gpu(cudart: Any = None) -> Gpu:
    """The first visible GPU; creates no CUDA context, so it uses no device memory.

    Args:
        cudart: stand-in for `cuda.bindings.runtime`; None loads that.

    Raises:
        BackendError: no GPU, no driver, or cuda-python is not installed.
    """
    if cudart is None:
        cudart = load_cudart("cannot look for a GPU: cuda-python does not load")
    ask = partial(call, cudart, explain=_explain)
    ask("cudaGetDeviceCount")  # fails without a driver or device
    properties = ask("cudaGetDeviceProperties", 0)
    driver = ask("cudaDriverGetVersion")  # 13020 for 13.2
    return Gpu(
        properties.name.split(b"\0")[0].decode(),
        f"{properties.major}{properties.minor}",
        properties.totalGlobalMem,
        f"{driver // 1000}.{driver % 1000 // 10}",
    )


def dotted(compute_capability: str) -> str:
    """A compute capability as NVIDIA writes it: "8.9" for "89"."""
    return f"{compute_capability[:-1]}.{compute_capability[-1]}"


def _explain(name: str, error: str) -> str:
    return (
        f"no NVIDIA GPU can be used here ({name} returned {error}); if there is one, "
        "install its driver and check CUDA_VISIBLE_DEVICES"
    )
