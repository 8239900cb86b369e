"""Manifests of a bundle's `engines/`: how each engine was built, and whether it is up to date.

    engines/<target>-<8 hex>/   one folder per `EngineSettings`; the hex is their key
        manifest.json           format 2: {"format_version", "settings": `EngineSettings`,
                                "engines": {graph name: `EngineRecord`}, "sha256"}; format 1 has
                                no sha256, see `versioned_json`
        *.engine                one per graph
        timing.cache            TensorRT's, kept between builds
        runtime.cache           TensorRT-RTX's, written by the first run on a device

An engine is up to date if its key equals the one computed from its graph, weights and settings, and
its file is unchanged. Keys do not cover the driver: settings name the one compute capability that
an engine is for.
"""

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mod_edge.bundle.manifest import MANIFEST_FILE, Manifest, file_sha256
from mod_edge.bundle.shape_ranges import StepLimits, optimization_profiles
from mod_edge.bundle.versioned_json import VersionedJson
from mod_edge.config import ModelConfig
from mod_edge.errors import BundleError
from mod_edge.native.gpu import dotted
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.signature import GraphSignature
from mod_edge.profiles import profile_names

FORMAT_VERSION, OLDEST_FORMAT = 2, 1
ENGINES_FOLDER = "engines"
TIMING_CACHE_FILE = "timing.cache"
RUNTIME_CACHE_FILE = "runtime.cache"
# Part of every key. Raise it when other flags or options go to the compiler, so that existing
# engines are built again.
RECIPE = 1


@dataclass(frozen=True)
class EngineSettings:
    """Everything that an engine depends on besides its graph.

    Attributes:
        target: the bundle's.
        compiler: Python module, "tensorrt" or "tensorrt_rtx".
        version: of the compiler, in full: engines of another version do not load.
        compute_capability: of the GPU, "89" for 8.9.
        precision: the bundle's.
        profile: name of the profile, whose values are the fields below.
        limits: the largest steps.
        workspace_mib: most memory that a kernel may use while it runs.
        builder_optimization_level: 0 (fast build) to 5 (fast engine).
    """

    target: str
    compiler: str
    version: str
    compute_capability: str
    precision: str
    profile: str
    limits: StepLimits
    workspace_mib: int
    builder_optimization_level: int

    @property
    def key(self) -> str:
        """Hexadecimal hash of all fields."""
        return _digest(asdict(self))

    @property
    def folder(self) -> str:
        """Path of these settings' engines inside a bundle."""
        return f"{ENGINES_FOLDER}/{self.target}-{self.key[:8]}"


@dataclass(frozen=True)
class EngineRecord:
    """One engine file beside the manifest; `build_s` is the seconds to compile it."""

    file: str
    key: str
    sha256: str
    size_bytes: int
    build_s: float


@dataclass(frozen=True)
class EngineManifest:
    """The engines of one folder."""

    settings: EngineSettings
    engines: dict[str, EngineRecord]


def engine_file(signature: GraphSignature) -> str:
    """The engine's file name."""
    return f"{signature.name}.engine"


def engine_key(
    manifest: Manifest, config: ModelConfig, signature: GraphSignature, settings: EngineSettings
) -> str:
    """The key of an up-to-date engine of this graph.

    Hashes of the graph and its weights come from the bundle's manifest: call `check_files` first.
    """
    ranges = optimization_profiles(signature, config, settings.limits)
    return _digest(
        {
            "recipe": RECIPE,
            "settings": settings.key,
            "files": [manifest.files[file].sha256 for file in signature.files],
            "ranges": {
                name: {tensor: asdict(shapes) for tensor, shapes in inputs.items()}
                for name, inputs in ranges.items()
            },
        }
    )


def engine_fault(folder: Path, record: EngineRecord | None, key: str, *, hash_all: bool) -> str:
    """Why the engine is not up to date, as the end of a sentence; "" if it is.

    Args:
        folder: of the engines.
        record: the engine's entry in the manifest, if any.
        key: from `engine_key`.
        hash_all: compare the file's hash, not only its size.
    """
    if record is None:
        return "was not built"
    if record.key != key:
        return "was built from another export of the graph, or by another mod-edge"
    path = folder / record.file
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != record.size_bytes or (
        hash_all and file_sha256(path) != record.sha256
    ):
        return "is damaged"
    return ""


def build_command(folder: Path, settings: EngineSettings) -> str:
    """The command that builds engines with these settings for the bundle at `folder`."""
    profile = settings.profile
    if profile not in profile_names():
        profile += ".toml"  # the user's own file, whose path is unknown
    command = f"mod-edge build {shlex.quote(str(folder))} --profile {shlex.quote(profile)}"
    if settings.compiler == "tensorrt":  # compiles for this machine's GPU
        return command
    return f"{command} --compute-capability {dotted(settings.compute_capability)}"


def write_engine_manifest(engines: EngineManifest, bundle: Path) -> None:
    """Write the manifest into the settings' folder, atomically."""
    DOCUMENT.write(bundle / engines.settings.folder / MANIFEST_FILE, asdict(engines))


def read_engine_manifests(bundle: Path) -> list[EngineManifest]:
    """All engine manifests of the bundle, by folder name; empty if nothing was built.

    Raises:
        BundleError: a manifest is damaged, has another format, or names a file elsewhere.
    """
    paths = sorted((bundle / ENGINES_FOLDER).glob(f"*/{MANIFEST_FILE}"))
    return [_read(path) for path in paths]


def read_engine_manifest(bundle: Path, settings: EngineSettings) -> EngineManifest:
    """The engines of these settings; empty if nothing was built.

    Raises:
        BundleError: as `read_engine_manifests`, or the manifest has other settings.
    """
    path = bundle / settings.folder / MANIFEST_FILE
    if not path.is_file():
        return EngineManifest(settings, {})
    engines = _read(path)
    if engines.settings != settings:
        raise BundleError(f"{path} has other settings; remove {path.parent} and build again")
    return engines


def _read(path: Path) -> EngineManifest:
    advice = f"remove {path.parent} and build again"
    engines = DOCUMENT.read(path, advice=advice)
    if any(Path(record.file).name != record.file for record in engines.engines.values()):
        raise BundleError(f"{path} names a file outside its folder; {advice}")
    return engines


def _engines_of(data: dict[str, Any]) -> EngineManifest:
    settings = dict(data["settings"])
    limits = dict(settings.pop("limits"))
    limits["capacity"] = Rows(*limits["capacity"])
    return EngineManifest(
        EngineSettings(limits=StepLimits(**limits), **settings),
        {name: EngineRecord(**record) for name, record in data["engines"].items()},
    )


DOCUMENT = VersionedJson(
    FORMAT_VERSION, OLDEST_FORMAT, frozenset({"settings", "engines"}), _engines_of
)


def _digest(document: object) -> str:
    text = json.dumps(document, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
