"""The compute capability that engines are compiled for: the requested one, or this machine's."""

import re

from mod_edge.errors import BackendError, ConfigError
from mod_edge.native.gpu import dotted, find_gpu
from mod_edge.native.trt import TensorRT
from mod_edge.profiles import Profile


def choose_compute_capability(tensorrt: TensorRT, profile: Profile, requested: str | None) -> str:
    """The compute capability to compile for, as "89".

    Args:
        tensorrt: the compiler.
        profile: lists the compute capabilities of its devices.
        requested: "89" or "8.9"; None for this machine's GPU, else the profile's only one.

    Raises:
        ConfigError: the compiler does not support the requested one, or the choice is ambiguous.
        BackendError: TensorRT (not RTX) compiles only for this machine's GPU, and there is none.
    """
    if requested is not None and not re.fullmatch(r"\d{1,2}\.?\d", requested):
        raise ConfigError(f"--compute-capability {requested!r}: wanted one like 8.9")
    wanted = None if requested is None else requested.replace(".", "")
    if not tensorrt.is_rtx:
        here = find_gpu().compute_capability
        if wanted not in {None, here}:
            raise ConfigError(
                f"--compute-capability {dotted(wanted)}: TensorRT compiles only for this machine's "
                f"GPU, which has {dotted(here)}; build on the device itself, or export for target "
                "rtx"
            )
        return here
    wanted = wanted or _own_compute_capability(profile)
    if wanted not in tensorrt.compute_capabilities:
        raise ConfigError(
            f"{tensorrt.name} does not compile for compute capability {dotted(wanted)}, only for "
            f"{', '.join(map(dotted, tensorrt.compute_capabilities))}; for Jetsons and server "
            "cards export with --target tensorrt"
        )
    return wanted


def _own_compute_capability(profile: Profile) -> str:
    """The compute capability of this machine's GPU; without a GPU, the profile's only one."""
    of_profile = profile.compute_capabilities
    shown = ", ".join(map(dotted, of_profile))
    try:
        gpu = find_gpu()
    except BackendError as exc:
        if len(of_profile) == 1:
            return of_profile[0]
        raise ConfigError(
            f"profile {profile.name!r} covers compute capabilities {shown or 'of all GPUs'}, and "
            f"{exc}; give --compute-capability"
        ) from exc
    if of_profile and gpu.compute_capability not in of_profile:
        raise ConfigError(
            f"this machine's {gpu.name} has compute capability {dotted(gpu.compute_capability)}, "
            f"profile {profile.name!r} is for {shown}; choose another --profile, or give "
            "--compute-capability"
        )
    return gpu.compute_capability
