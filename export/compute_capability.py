"""Which compute capability engines are compiled for: the one asked for, or this machine's."""

import re

from mod_edge.errors import BackendError, ConfigError
from mod_edge.native.gpu import find_gpu
from mod_edge.native.trt import TensorRT
from mod_edge.profiles import Profile


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
