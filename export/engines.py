"""A bundle's graphs compiled into TensorRT engines, one after another, each kept once it is whole.

One process compiles all of them. Measured with TensorRT-RTX 1.7 on 336 MiB of weights: four graphs
in a row peak at 1,201 MiB each and leave 129 MiB behind, 7 more than before the first. A process a
graph would save nothing, and would load the compiler again for each.
"""

import hashlib
import re
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
from mod_edge.native.trt import TensorRT, load, require_target
from mod_edge.plan.signature import GraphSignature
from mod_edge.plan.targets import TARGETS
from mod_edge.profiles import Profile
from mod_edge.progress import OnStep, not_shown

MEMORY_INFO = Path("/proc/meminfo")
PROCESS_STATUS = Path("/proc/self/status")
# An engine holds its graph's weights and the kernels of its profiles: 8.7 MB of kernels at most in
# the tiny bundle, whatever the weights.
KERNEL_BYTES = 16 * 2**20
# Peak memory over the weights: 3.2 measured on 336 MiB, others tell of 3 to 4. What the compiler
# takes without weights: 180 MiB measured, a driver takes some more.
MEMORY_FACTOR = 4
BASE_MEMORY_BYTES = 512 * 2**20


@dataclass(frozen=True)
class EngineReport:
    """What was done about one graph: `build_s` seconds, 0 where its engine was fresh."""

    name: str
    is_built: bool
    build_s: float
    size_bytes: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildReport:
    """What `build_engines` did.

    Attributes:
        folder: where the engines lie.
        settings: what they are for.
        compiler: its name and version, for people.
        graphs: one entry a graph, in the order of a step.
        seconds: in all, checks included.
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
        """Engines that were compiled."""
        return sum(graph.is_built for graph in self.graphs)

    @property
    def num_fresh(self) -> int:
        """Engines that were there already and still fit."""
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
    """Compile the graphs of `bundle` whose engines are not fresh.

    Each engine is in its place, and in the manifest beside it, before the next one is begun:
    whatever ends this early costs one graph.

    Args:
        bundle: for a target that has a compiler; every file of it was hashed.
        profile: shapes to compile for, and how. Its window is that of `delta` graphs; `in_place`
            graphs carry theirs.
        compute_capability: of the GPU to compile for, "89" or "8.9"; where None, that of this
            machine's GPU, else the only one of `profile`.
        force: compile the fresh ones too.
        on_step: told the graph that begins, how much of the work is done, and of how much.

    Raises:
        BundleError: its graphs are for a target that compiles no engines.
        ConfigError: the profile does not fit the bundle, or it is open what to compile for.
        BackendError: TensorRT is missing, too old, or lacks disk or memory.
        ExportError: TensorRT refuses a graph or would make a wrong engine of it.
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
    found = EngineManifest(settings, {}) if force else read_engine_manifest(folder, settings)
    fresh = _only_fresh(folder, found, work)
    stale = [graph for graph in work if graph.name not in fresh.engines]
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
    """One graph, the key that its engine will have, and the bytes of graph and weights."""

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
            f"bundle {folder} is for {target.name} ({target.runs_on}), which compiles no engines; "
            f"export the checkpoint again with --target, one of {others}"
        )
    if target.name not in profile.targets:
        raise ConfigError(
            f"profile {profile.name!r} is for {', '.join(profile.targets)}, bundle {folder} for "
            f"{target.name}; take another profile, or export the checkpoint again with --target "
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


def _only_fresh(folder: Path, found: EngineManifest, work: Sequence[_Work]) -> EngineManifest:
    """`found` without the engines that are not what the bundle's graphs want today."""
    engines_folder = folder / found.settings.folder
    fresh = {
        graph.name: found.engines[graph.name]
        for graph in work
        if not engine_fault(engines_folder, found.engines.get(graph.name), graph.key, hash_all=True)
    }
    return replace(found, engines=fresh)


def _require_room(folder: Path, stale: Sequence[_Work]) -> None:
    """Refuse what would end half-way for want of disk or memory.

    Raises:
        BackendError: names what is needed and what is free.
    """
    if not stale:
        return
    needed, free = sum(graph.engine_bytes for graph in stale), shutil.disk_usage(folder).free
    if needed > free:
        raise BackendError(
            f"{len(stale)} engines take about {_mib(needed)} of disk, {_mib(free)} are free at "
            f"{folder}; make room there (engines of other settings lie in "
            f"{folder / ENGINES_FOLDER}), or take the bundle to another disk"
        )
    largest = max(stale, key=lambda graph: graph.memory_bytes)
    available = _free_memory_bytes()
    if available is not None and largest.memory_bytes > available:
        raise BackendError(
            f"compiling {largest.name} takes about {_mib(largest.memory_bytes)} of memory, "
            f"{_mib(available)} are free, swap included; close other programs or add swap"
        )


def _free_memory_bytes() -> int | None:
    """What can be had without another program losing any; None where the system does not say."""
    try:
        text = MEMORY_INFO.read_text(encoding="ascii")
    except OSError:
        return None
    found = dict(re.findall(r"^(MemAvailable|SwapFree): +(\d+) kB$", text, re.MULTILINE))
    return sum(int(kib) for kib in found.values()) * 1024 if "MemAvailable" in found else None


def _peak_memory_bytes() -> int:
    """Of this process alone; getrusage would tell of a larger one that has started it."""
    text = PROCESS_STATUS.read_text(encoding="ascii", errors="replace")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.0f} MiB"


def _compile_all(
    tensorrt: TensorRT,
    folder: Path,
    engines: EngineManifest,
    stale: Sequence[_Work],
    on_step: OnStep,
) -> dict[str, EngineReport]:
    """Compile `stale`, and keep the manifest of the engines as true as their folder."""
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
    """Compile one graph into its place; its record, and what the compiler warned of."""
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
