"""Choose the engines of a bundle that run here: up to date, for this GPU and TensorRT version."""

from dataclasses import replace
from pathlib import Path

from mod_edge.bundle.bundle import Bundle
from mod_edge.bundle.engine_manifest import (
    EngineManifest,
    EngineSettings,
    build_command,
    engine_fault,
    engine_key,
)
from mod_edge.bundle.manifest import MANIFEST_FILE, SMALL_FILE_BYTES
from mod_edge.errors import BackendError
from mod_edge.native.gpu import dotted
from mod_edge.native.trt import NAMES, TensorRT
from mod_edge.plan.targets import Lowering
from mod_edge.profiles import load_profile, profile_names
from mod_edge.runtime.loaded_model import StreamLimits


def find_engines(
    bundle: Bundle,
    limits: StreamLimits,
    *,
    tensorrt: TensorRT,
    compute_capability: str,
) -> EngineManifest:
    """The engines that fit; the set that was built last if there are several.

    Args:
        bundle: with every layer.
        limits: cache and steps that they must support.
        tensorrt: the installed TensorRT.
        compute_capability: of the GPU, "89" for 8.9.

    Raises:
        BackendError: none was built, or none fits; says what differs and which command builds
            engines that fit.
        BundleError: an engine manifest is damaged.
    """
    folder, found = bundle.folder, bundle.engines
    if not found:
        raise BackendError(
            f"bundle {folder} has no engines; build them with: mod-edge build {folder} "
            f"--profile {_profile_for(bundle.target.name, compute_capability)}"
        )
    fitting, too_small, misfits = [], [], []
    for engines in found:
        settings = engines.settings
        here = _settings_here(settings, bundle.lowering, tensorrt, compute_capability)
        faults = _differences(settings, here) or _file_faults(bundle, engines)
        limit_faults = _limit_faults(settings, limits)
        if faults:
            misfits.append(f"{settings.folder} {'; '.join(faults)}")
        elif limit_faults:
            too_small.append(f"{settings.folder} {'; '.join(limit_faults)}")
        else:
            fitting.append(engines)
    if fitting:
        return max(fitting, key=lambda engines: _built_at(folder, engines))
    if too_small:
        raise BackendError(
            f"the engines in {folder} are too small for this run: {', and '.join(too_small)}; "
            "lower --window (eval: --window-tokens) or --frames-per-step, or rebuild with a larger "
            "profile"
        )
    newest = max(found, key=lambda engines: _built_at(folder, engines))
    here = _settings_here(newest.settings, bundle.lowering, tensorrt, compute_capability)
    raise BackendError(
        f"no engines of bundle {folder} fit: {', and '.join(misfits)}; build them with: "
        f"{build_command(folder, here)}"
    )


def _built_at(folder: Path, engines: EngineManifest) -> float:
    return (folder / engines.settings.folder / MANIFEST_FILE).stat().st_mtime


def _settings_here(
    settings: EngineSettings, lowering: Lowering, tensorrt: TensorRT, compute_capability: str
) -> EngineSettings:
    """The settings with this bundle's target and precision, this TensorRT and this GPU."""
    return replace(
        settings,
        target=lowering.target,
        compiler=tensorrt.compiler,
        version=tensorrt.version,
        compute_capability=compute_capability,
        precision=lowering.precision,
    )


def _differences(settings: EngineSettings, here: EngineSettings) -> list[str]:
    """What the engines were built for, where it differs from what is here."""
    theirs, ours = (
        (
            f"{NAMES[each.compiler]} {each.version}",
            f"compute capability {dotted(each.compute_capability)}",
            f"target {each.target}",
            f"precision {each.precision}",
        )
        for each in (settings, here)
    )
    return [
        f"are for {built_for}, here is {wanted}"
        for built_for, wanted in zip(theirs, ours, strict=True)
        if built_for != wanted
    ]


def _limit_faults(settings: EngineSettings, limits: StreamLimits) -> list[str]:
    theirs, capacity = settings.limits, limits.capacity
    faults = []
    if theirs.max_step_tokens < limits.max_step_tokens:
        faults.append(
            f"take {theirs.max_step_tokens} tokens per step, wanted {limits.max_step_tokens}"
        )
    if theirs.max_frames < limits.frames_per_step:
        faults.append(f"take {theirs.max_frames} frames per step, wanted {limits.frames_per_step}")
    elif theirs.max_frames < limits.frames_per_encode:
        faults.append(
            f"encode {theirs.max_frames} frames at once, wanted {limits.frames_per_encode} of all "
            "streams"
        )
    if not capacity.fits(theirs.capacity):
        faults.append(
            f"take a cache of {theirs.capacity.dense} rows ({theirs.capacity.mod} in MoD layers), "
            f"wanted {capacity.dense} ({capacity.mod})"
        )
    return faults


def _file_faults(bundle: Bundle, engines: EngineManifest) -> list[str]:
    """Engines that are missing, damaged or from another export; only small files are hashed."""
    faults = []
    for signature in bundle.signatures():
        record = engines.engines.get(signature.name)
        fault = engine_fault(
            bundle.folder / engines.settings.folder,
            record,
            engine_key(bundle.manifest, bundle.config, signature, engines.settings),
            hash_all=record is not None and record.size_bytes < SMALL_FILE_BYTES,
        )
        if fault:
            faults.append(f"are incomplete: {signature.name} {fault}")
    return faults


def _profile_for(target: str, compute_capability: str) -> str:
    """A shipped profile for this GPU, else one for the bundle's target."""
    profiles = [
        profile for profile in map(load_profile, profile_names()) if target in profile.targets
    ]
    fitting = [
        profile for profile in profiles if compute_capability in profile.compute_capabilities
    ]
    return (fitting or profiles)[0].name
