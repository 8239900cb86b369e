"""The bundle's manifest.json: what is in the folder, and whether it is still that.

Format 2, one JSON object:

    format_version       2
    checkpoint           {"fingerprint": sha256 over the checkpoint's files, "name": folder name}
    lowering             {"target", "precision", "capacity": [dense, mod] rows or null}
    layers               indices of the decoder layers that were exported, rising
    graphs               {name: {"file", "kind", "opset", "inputs", "outputs", "parity"}}; inputs
                         and outputs as [name, dtype, dims] with dims as in `signature`; parity as
                         {"max_relative_error", "allowed"} against PyTorch
    files                {path inside the bundle: {"sha256", "size_bytes"}}, manifest.json left out
    tools                {package: version} that made it

The model's config is config.json beside it, listed in `files`. Paths are relative, with forward
slashes, and may not leave the folder.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mod_edge.errors import BundleError, ConfigError
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.targets import Lowering

FORMAT_VERSION = 2
MANIFEST_FILE = "manifest.json"
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
EMBEDDING_FILE = "embedding.npy"
# `run` starts in a moment because it hashes only what is small; `--check` hashes all.
SMALL_FILE_BYTES = 64 * 2**20
READ_BYTES = 2**22


@dataclass(frozen=True)
class FileRecord:
    """A file's content hash and size."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class GraphRecord:
    """One graph as it was exported; the fields are those of the module's format."""

    file: str
    kind: str
    opset: int
    inputs: list[list[Any]]
    outputs: list[list[Any]]
    parity: dict[str, float]


@dataclass(frozen=True)
class Manifest:
    """The parsed manifest; the fields are those of the module's format."""

    checkpoint: dict[str, str]
    lowering: Lowering
    layers: list[int]
    graphs: dict[str, GraphRecord]
    files: dict[str, FileRecord]
    tools: dict[str, str]
    format_version: int = FORMAT_VERSION


def file_sha256(path: Path) -> str:
    """The file's sha256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def record_file(path: Path) -> FileRecord:
    """The record of the file as it is now."""
    return FileRecord(file_sha256(path), path.stat().st_size)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest` into `folder`."""
    text = json.dumps(asdict(manifest), indent=1) + "\n"
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle at `folder`; its files are not looked at, see `check_files`.

    Raises:
        BundleError: no bundle there, a damaged or newer manifest, or a path that leaves the folder.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise BundleError(
            f"{folder} is no bundle: it has no {MANIFEST_FILE}; "
            f"make one with: mod-edge export CHECKPOINT -o {folder}"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["format_version"]
    except (ValueError, KeyError, TypeError) as exc:
        raise BundleError(f"{path} is damaged ({exc!r}); export the checkpoint again") from exc
    if version != FORMAT_VERSION:
        raise BundleError(_wrong_version(path, version))
    try:
        graphs = {name: GraphRecord(**record) for name, record in data.pop("graphs").items()}
        files = {name: FileRecord(**record) for name, record in data.pop("files").items()}
        manifest = Manifest(
            graphs=graphs, files=files, lowering=_lowering(data.pop("lowering")), **data
        )
        if not all(isinstance(layer, int) for layer in manifest.layers):
            raise TypeError(f"layers={manifest.layers!r} are no integers")
        paths = [
            PurePosixPath(name) for name in (*files, *(graph.file for graph in graphs.values()))
        ]
    except (KeyError, TypeError, AttributeError, ConfigError) as exc:
        raise BundleError(f"{path} is damaged ({exc}); export the checkpoint again") from exc
    for relative in paths:
        _refuse_escape(folder, relative)
    return manifest


def is_bundle(folder: Path) -> bool:
    """Whether `folder` holds a manifest that this module could have written, of any format."""
    try:
        data = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and {"format_version", "checkpoint", "graphs"} <= data.keys()


def require_listed(folder: Path, manifest: Manifest, needed: set[str]) -> None:
    """Refuse to load what the manifest does not vouch for.

    Args:
        folder: the bundle.
        manifest: of it.
        needed: paths inside the bundle.

    Raises:
        BundleError: names every one that is not listed.
    """
    if unlisted := needed - manifest.files.keys():
        raise BundleError(
            f"{folder / MANIFEST_FILE} does not list {', '.join(sorted(unlisted))}; "
            "export the checkpoint again"
        )


def check_files(folder: Path, manifest: Manifest, *, hash_all: bool) -> None:
    """Hold the folder's files against the manifest, sizes always, hashes as asked.

    Args:
        folder: the bundle.
        manifest: from `read_manifest`.
        hash_all: hash every file, not only those under `SMALL_FILE_BYTES`.

    Raises:
        BundleError: names every file that is missing or changed.
    """
    faults = []
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != record.size_bytes:
            faults.append(f"{name} has {path.stat().st_size} bytes, wanted {record.size_bytes}")
        elif (hash_all or record.size_bytes < SMALL_FILE_BYTES) and (
            file_sha256(path) != record.sha256
        ):
            faults.append(f"{name} has other contents than when it was exported")
    if faults:
        raise BundleError(
            f"bundle {folder} is damaged: {'; '.join(faults)}; copy or export it again"
        )


def _lowering(data: dict[str, Any]) -> Lowering:
    capacity = data["capacity"]
    return Lowering(data["target"], data["precision"], capacity and Rows(*capacity))


def _wrong_version(path: Path, version: object) -> str:
    known = f"this mod-edge reads format {FORMAT_VERSION}"
    if isinstance(version, int) and version > FORMAT_VERSION:
        return f"{path} has format {version}, {known}; upgrade with: pip install -U mod-edge"
    return f"{path} has format {version!r}, {known}; export the checkpoint again"


def _refuse_escape(folder: Path, relative: PurePosixPath) -> None:
    name, root = str(relative), folder.resolve()
    try:
        is_inside = not relative.is_absolute() and (root / relative).resolve().is_relative_to(root)
    except (ValueError, OSError, RuntimeError):  # a null byte, a circle of links
        is_inside = False
    if not is_inside or "\\" in name:
        raise BundleError(
            f"{folder / MANIFEST_FILE} names {name!r}, which leaves the bundle's folder; "
            "do not trust this bundle"
        )
