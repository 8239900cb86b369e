"""Compiles a bundle's graphs into TensorRT engines, one after another; each is saved when done.

One process compiles all of them. Measured with TensorRT-RTX 1.7 on 336 MiB of weights: four graphs
in a row peak at 1,201 MiB each and end at 129 MiB, 7 more than before the first. One process per
graph would save no memory and load the compiler again for each.
"""

import hashlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mod_edge.bundle.bundle import Bundle
from mod_edge.bundle.engine_manifest import (
    ENGINES_FOLDER,
    TIMING_CACHE_FILE,
    EngineManifest,
    EngineRecord,
    EngineSettings,
    engine_fault,
    engine_file,
    engine_key,
    read_engine_manifest,
    write_engine_manifest,
)
from mod_edge.bundle.shape_ranges import OptimizationProfiles, optimization_profiles, step_limits
from mod_edge.bundle.staging import write_whole
from mod_edge.errors import BackendError, BundleError, ConfigError
from mod_edge.export.compiler import compile_graph
from mod_edge.export.compute_capability import choose_compute_capability
from mod_edge.native.procfs import sizes_in
from mod_edge.native.trt import TensorRT, load, require_target
from mod_edge.plan.signature import GraphSignature
from mod_edge.plan.targets import TARGETS
from mod_edge.profiles import Profile
from mod_edge.progress import OnStep, not_shown

MEMORY_INFO = Path("/proc/meminfo")
PROCESS_STATUS = Path("/proc/self/status")
# An engine holds its graph's weights and the kernels of its profiles: at most 8.7 MB of kernels in
# the tiny bundle, independent of the weights.
KERNEL_BYTES = 16 * 2**20
# Peak memory over the weights: 3.2 measured on 336 MiB, others report 3 to 4. The compiler without
# weights: 180 MiB measured, plus the driver's.
MEMORY_FACTOR = 4
BASE_MEMORY_BYTES = 512 * 2**20


@dataclass(frozen=True)
class EngineReport:
    """One graph's engine: whether it was compiled now, and in `build_s` seconds (0 if not)."""

    name: str
    is_built: bool
    build_s: float
    size_bytes: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildReport:
    """The result of `build_engines`.

    Attributes:
        folder: of the engines.
        settings: what they are for.
        compiler: its name and version, for display.
        graphs: one entry per graph, in the order of a step.
        seconds: total, checks included.
        peak_memory_bytes: of this process so far.
    """

    folder: Path
    settings: EngineSettings
    compiler: str
    graphs: tuple[EngineReport, ...]
    seconds: float
    peak_memory_bytes: int

    @property
    def num_built(self) -> int:
        """Engines that were compiled now."""
        return sum(graph.is_built for graph in self.graphs)

    @property
    def num_fresh(self) -> int:
        """Up-to-date engines that were skipped."""
        return len(self.graphs) - self.num_built

    @property
    def size_bytes(self) -> int:
        """All engines together."""
        return sum(graph.size_bytes for graph in self.graphs)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        counts = {"num_built": self.num_built, "num_fresh": self.num_fresh}
        return {**asdict(self), "folder": str(self.folder), **counts, "size_bytes": self.size_bytes}


def build_engines(
    bundle: Bundle,
    profile: Profile,
    *,
    compute_capability: str | None = None,
    force: bool = False,
    on_step: OnStep = not_shown,
) -> BuildReport:
    """Compile the graphs of `bundle` that have no up-to-date engine.

    Each engine and its manifest entry are written before the next graph is begun, so that an
    interruption loses one graph at most.

    Args:
        bundle: for a target that has a compiler, opened with every file hashed.
        profile: shapes and options to compile for. Its window applies to `delta` graphs; `in_place`
            graphs have a fixed one.
        compute_capability: see `choose_compute_capability`.
        force: compile up-to-date engines again too.
        on_step: called with the graph that begins, the work done and the total work, in bytes.

    Raises:
        BundleError: the bundle's target has no engines.
        ConfigError: the profile does not fit the bundle, or the compute capability is ambiguous.
        BackendError: TensorRT is missing or too old, or disk or memory are too small.
        ExportError: TensorRT rejects a graph or would build a wrong engine.
    """
    started = time.perf_counter()
    folder, manifest, config = bundle.folder, bundle.manifest, bundle.config
    signatures = bundle.signatures()
    tensorrt = _compiler_for(bundle, profile)
    settings = _settings(bundle, profile, tensorrt, compute_capability)
    work = [
        _Work(
            graph,
            engine_key(manifest, config, graph, settings),
            optimization_profiles(graph, config, settings.limits),
            sum(manifest.files[file].size_bytes for file in graph.files),
        )
        for graph in signatures
    ]
    fresh = _only_fresh(folder, _found(folder, settings, force=force), work)
    stale = [graph for graph in work if force or graph.name not in fresh.engines]
    _require_room(folder, stale)
    reports = {
        name: EngineReport(name, False, 0.0, record.size_bytes)
        for name, record in fresh.engines.items()
    } | _compile_all(tensorrt, folder, fresh, stale, on_step)
    return BuildReport(
        folder / settings.folder,
        settings,
        tensorrt.name,
        tuple(reports[graph.name] for graph in signatures),
        time.perf_counter() - started,
        _peak_memory_bytes(),
    )


@dataclass(frozen=True)
class _Work:
    """One graph, its engine's key, and the size of graph and weights."""

    signature: GraphSignature
    key: str
    profiles: OptimizationProfiles
    graph_bytes: int

    @property
    def name(self) -> str:
        return self.signature.name

    @property
    def engine_bytes(self) -> int:
        return self.graph_bytes + KERNEL_BYTES

    @property
    def memory_bytes(self) -> int:
        return self.graph_bytes * MEMORY_FACTOR + BASE_MEMORY_BYTES


def _compiler_for(bundle: Bundle, profile: Profile) -> TensorRT:
    folder, target = bundle.folder, bundle.target
    if not target.compiler:
        others = ", ".join(name for name, other in TARGETS.items() if other.compiler)
        raise BundleError(
            f"bundle {folder} is for {target.name} ({target.runs_on}), which has no engines; "
            f"export the checkpoint again with --target, one of {others}"
        )
    if target.name not in profile.targets:
        raise ConfigError(
            f"profile {profile.name!r} is for {', '.join(profile.targets)}, bundle {folder} for "
            f"{target.name}; choose another profile, or export the checkpoint again with --target "
            f"{profile.targets[0]}"
        )
    tensorrt = load(target.compiler)
    require_target(tensorrt, target)
    return tensorrt


def _settings(
    bundle: Bundle, profile: Profile, tensorrt: TensorRT, compute_capability: str | None
) -> EngineSettings:
    lowering = bundle.lowering
    rows = lowering.capacity or bundle.plan(profile.window, profile.max_new_tokens).capacity
    return EngineSettings(
        target=lowering.target,
        compiler=tensorrt.compiler,
        version=tensorrt.version,
        compute_capability=choose_compute_capability(tensorrt, profile, compute_capability),
        precision=lowering.precision,
        profile=profile.name,
        limits=step_limits(profile, rows),
        workspace_mib=profile.workspace_mib,
        builder_optimization_level=profile.builder_optimization_level,
    )


def _found(folder: Path, settings: EngineSettings, *, force: bool) -> EngineManifest:
    """The engines that were built before; with `force`, none where their manifest is damaged."""
    try:
        return read_engine_manifest(folder, settings)
    except BundleError:
        if not force:
            raise
        return EngineManifest(settings, {})


def _only_fresh(folder: Path, found: EngineManifest, work: Sequence[_Work]) -> EngineManifest:
    """`found` without the engines that no longer fit the bundle's graphs."""
    engines_folder = folder / found.settings.folder
    fresh = {
        graph.name: found.engines[graph.name]
        for graph in work
        if not engine_fault(engines_folder, found.engines.get(graph.name), graph.key, hash_all=True)
    }
    return replace(found, engines=fresh)


def _require_room(folder: Path, stale: Sequence[_Work]) -> None:
    """Check that disk and memory suffice.

    Raises:
        BackendError: names what is needed and what is free.
    """
    if not stale:
        return
    needed, free = sum(graph.engine_bytes for graph in stale), shutil.disk_usage(folder).free
    if needed > free:
        raise BackendError(
            f"{len(stale)} engines need about {_mib(needed)} of disk, {_mib(free)} are free at "
            f"{folder}; free some (engines of other settings are in {folder / ENGINES_FOLDER}), "
            "or move the bundle to another disk"
        )
    largest = max(stale, key=lambda graph: graph.memory_bytes)
    available = _free_memory_bytes()
    if available is not None and largest.memory_bytes > available:
        raise BackendError(
            f"compiling {largest.name} needs about {_mib(largest.memory_bytes)} of memory, "
            f"{_mib(available)} are free, swap included; close other programs or add swap"
        )


def _free_memory_bytes() -> int | None:
    """Available memory and free swap; None where the system does not report them."""
    sizes = sizes_in(MEMORY_INFO)
    available = sizes.get("MemAvailable")
    return None if available is None else available + sizes.get("SwapFree", 0)


def _peak_memory_bytes() -> int:
    """Peak of this process alone; getrusage would include a larger parent process."""
    return sizes_in(PROCESS_STATUS).get("VmHWM", 0)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.0f} MiB"


def _compile_all(
    tensorrt: TensorRT,
    folder: Path,
    engines: EngineManifest,
    stale: Sequence[_Work],
    on_step: OnStep,
) -> dict[str, EngineReport]:
    """Compile `stale`, updating the engines' manifest after each graph."""
    reports = {}
    total, done = sum(graph.engine_bytes for graph in stale), 0
    for graph in stale:
        on_step(graph.name, done, total)
        record, warnings = _compile(tensorrt, folder, graph, engines.settings)
        engines = replace(engines, engines={**engines.engines, graph.name: record})
        write_engine_manifest(engines, folder)
        reports[graph.name] = EngineReport(
            graph.name, True, record.build_s, record.size_bytes, warnings
        )
        done += graph.engine_bytes
    return reports


def _compile(
    tensorrt: TensorRT, folder: Path, graph: _Work, settings: EngineSettings
) -> tuple[EngineRecord, tuple[str, ...]]:
    """Compile one graph and write its engine; returns its record and the compiler's warnings."""
    started = time.perf_counter()
    engines_folder = folder / settings.folder
    engines_folder.mkdir(parents=True, exist_ok=True)
    cache_path = engines_folder / TIMING_CACHE_FILE
    compiled = compile_graph(
        tensorrt,
        folder / graph.signature.file,
        graph.signature,
        graph.profiles,
        settings,
        timing_cache=cache_path.read_bytes() if cache_path.is_file() else b"",
    )
    path = engines_folder / engine_file(graph.signature)
    write_whole(path, compiled.plan)
    if compiled.timing_cache:
        write_whole(cache_path, compiled.timing_cache)
    record = EngineRecord(
        file=path.name,
        key=graph.key,
        sha256=hashlib.sha256(compiled.plan).hexdigest(),
        size_bytes=path.stat().st_size,
        build_s=time.perf_counter() - started,
    )
    return record, compiled.warnings
