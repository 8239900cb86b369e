"""Which NVIDIA GPU engines are compiled for: the one asked for, or this machine's."""

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

from mod_edge.errors import BackendError, ConfigError
from mod_edge.export.cudart import call, load_cudart
from mod_edge.export.trt import TensorRT
from mod_edge.profiles import Profile


@dataclass(frozen=True)
class Gpu:
    """The first visible GPU.

    Attributes:
        name: NVIDIA's.
        compute_capability: "89" for 8.9.
        memory_bytes: all of it; on a Jetson, what it shares with the CPU.
        cuda: newest CUDA version that the driver can run, "13.0".
    """

    name: str
    compute_capability: str
    memory_bytes: int
    cuda: str


def find_gpu(cudart: Any = None) -> Gpu:
    """The GPU; makes no CUDA context, so it costs no device memory.

    Args:
        cudart: what stands for `cuda.bindings.runtime`; that itself where None.

    Raises:
        BackendError: there is none, or no driver, or cuda-python is not installed.
    """
    if cudart is None:
        cudart = load_cudart("no GPU can be looked for: cuda-python does not load")
    ask = partial(call, cudart, explain=_explain)
    ask("cudaGetDeviceCount")  # fails where there is no driver or no device
    properties = ask("cudaGetDeviceProperties", 0)
    driver = ask("cudaDriverGetVersion")  # 13020 for 13.2
    return Gpu(
        properties.name.split(b"\0")[0].decode(),
        f"{properties.major}{properties.minor}",
        properties.totalGlobalMem,
        f"{driver // 1000}.{driver % 1000 // 10}",
    )


def choose_compute_capability(tensorrt: TensorRT, profile: Profile, asked: str | None) -> str:
    """The compute capability to compile for: `asked`, else this GPU's, else the profile's only one.

    Args:
        tensorrt: the compiler.
        profile: says which GPUs such a device has.
        asked: "89" or "8.9".

    Raises:
        ConfigError: it cannot be compiled for that one, or it is open which one is meant.
        BackendError: TensorRT itself compiles on the GPU that it compiles for, and there is none.
    """
    if asked is not None and not re.fullmatch(r"\d{1,2}\.?\d", asked):
        raise ConfigError(f"compute-capability={asked!r}, wanted one like 8.9 or 89")
    wanted = None if asked is None else asked.replace(".", "")
    if not tensorrt.is_rtx:
        here = find_gpu().compute_capability
        if wanted not in {None, here}:
            raise ConfigError(
                f"compute-capability={wanted}, but TensorRT compiles for this machine's GPU alone, "
                f"which has {here}; build on the device itself, or export for target rtx"
            )
        return here
    wanted = wanted or _own_compute_capability(profile)
    if wanted not in tensorrt.compute_capabilities:
        raise ConfigError(
            f"{tensorrt.name} does not compile for compute capability {wanted}, only for "
            f"{', '.join(tensorrt.compute_capabilities)}; Jetsons and server cards take target "
            "tensorrt"
        )
    return wanted


def _own_compute_capability(profile: Profile) -> str:
    """This machine's GPU's, if the profile is for such a one, else the profile's."""
    of_profile = profile.compute_capabilities
    try:
        gpu = find_gpu()
    except BackendError as exc:
        if len(of_profile) == 1:
            return of_profile[0]
        raise ConfigError(
            f"profile {profile.name!r} does not say which one of compute capabilities "
            f"{', '.join(of_profile) or 'all'} to compile for, and {exc}; "
            "give --compute-capability"
        ) from exc
    if of_profile and gpu.compute_capability not in of_profile:
        raise ConfigError(
            f"this machine's {gpu.name} has compute capability {gpu.compute_capability}, profile "
            f"{profile.name!r} is for {', '.join(of_profile)}; take another profile, or give "
            "--compute-capability"
        )
    return gpu.compute_capability


def _explain(name: str, error: str) -> str:
    return (
        f"no NVIDIA GPU can be used here ({name} gives {error}); if there is one, "
        "install its driver, and look at CUDA_VISIBLE_DEVICES"
    )
