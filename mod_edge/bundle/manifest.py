"""The bundle's manifest.json: the files in the folder, with hashes to check them.

Format 4, one JSON object:

    format_version       4
    checkpoint           {"fingerprint": sha256 over the checkpoint's files, "name": folder name}
    lowering             {"target", "precision", "capacity": [dense, mod] rows or null,
                         "weight_format"}; weight_format is omitted if weights have the precision's
                         dtype
    layers               indices of the exported decoder layers, ascending
    graphs               {name: {"file", "kind", "opset", "inputs", "outputs", "parity",
                         "weights"}}; inputs and outputs as [name, dtype, dims] with dims as in
                         `signature`; parity as {"max_relative_error", "allowed"} against PyTorch
                         with the same quantized weights, and "cost" against the original ones;
                         weights as in `WeightForm`, null in the precision's dtype
    files                {path inside the bundle: {"sha256", "size_bytes"}}, without manifest.json
    tools                {package: version} that made it
    sha256               see `versioned_json`

Format 3 has no "weights". Format 2 has no sha256 either: changes of such a
manifest may go unnoticed. Both can still be read.
The model's config is config.json beside it, listed in `files`. Paths are relative, with forward
slashes, and may not leave the folder; links may lead to the Hugging Face Hub's cache.
"""

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mod_edge.bundle.staging import FolderKind
from mod_edge.bundle.versioned_json import VersionedJson
from mod_edge.errors import BundleError
from mod_edge.plan.targets import Lowering, lowering_from_json

FORMAT_VERSION, OLDEST_FORMAT = 4, 2
MANIFEST_FILE = "manifest.json"
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
EMBEDDING_FILE = "embedding.npy"
EMBEDDING_SCALES_FILE = "embedding_scales.npy"  # of a quantized table
# `run` hashes only files below this size, so that it starts fast; `--check` hashes all. A layer of
# the int8 1b has 61 MB: hashing all 16 took a fifth of a start.
SMALL_FILE_BYTES = 16 * 2**20
READ_BYTES = 2**22
LFS_POINTER_START = b"version https://git-lfs.github.com/spec/"


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
    weights: dict[str, Any] | None = None


@dataclass(frozen=True)
class Manifest:
    """The parsed manifest; the fields are those of the module's format."""

    checkpoint: dict[str, str]
    lowering: Lowering
    layers: list[int]
    graphs: dict[str, GraphRecord]
    files: dict[str, FileRecord]
    tools: dict[str, str]

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(record.size_bytes for record in self.files.values())


def is_lfs_pointer(path: Path) -> bool:
    """Whether the file is the small text that git-lfs leaves in place of one it did not fetch."""
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER_START)) == LFS_POINTER_START


def file_sha256(path: Path) -> str:
    """The file's sha256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def record_file(path: Path) -> FileRecord:
    """The record of the current file."""
    return FileRecord(file_sha256(path), path.stat().st_size)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest` into `folder`, atomically."""
    document = asdict(manifest) | {"lowering": manifest.lowering.to_json()}
    DOCUMENT.write(folder / MANIFEST_FILE, document)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle at `folder`; `check_files` checks the files it lists.

    Raises:
        BundleError: not a bundle, a damaged or newer manifest, or a path outside the folder.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise BundleError(
            f"{folder} is not a bundle (no {MANIFEST_FILE}); "
            f"make one with: mod-edge export CHECKPOINT -o {folder}"
        )
    manifest = DOCUMENT.read(path, advice="export the checkpoint again")
    for name in (*manifest.files, *(graph.file for graph in manifest.graphs.values())):
        _refuse_escape(folder, name)
    return manifest


def is_bundle(folder: Path) -> bool:
    """Whether `folder` has a bundle's manifest, of any format."""
    return DOCUMENT.is_at(folder / MANIFEST_FILE)


def require_listed(folder: Path, manifest: Manifest, needed: set[str]) -> None:
    """Check that the manifest lists all needed files.

    Args:
        folder: of the bundle.
        manifest: the bundle's.
        needed: paths inside the bundle.

    Raises:
        BundleError: names every file that is not listed.
    """
    if unlisted := needed - manifest.files.keys():
        raise BundleError(
            f"{folder / MANIFEST_FILE} does not list {', '.join(sorted(unlisted))}; "
            "export the checkpoint again"
        )


def check_files(folder: Path, manifest: Manifest, *, hash_all: bool) -> None:
    """Check sizes and hashes of the folder's files against the manifest.

    Args:
        folder: of the bundle.
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
            found = f"has {path.stat().st_size} bytes, wanted {record.size_bytes}"
            if is_lfs_pointer(path):
                found = "is a git-lfs pointer, not the file itself (fetch it with: git lfs pull)"
            faults.append(f"{name} {found}")
        elif (hash_all or record.size_bytes < SMALL_FILE_BYTES) and (
            file_sha256(path) != record.sha256
        ):
            faults.append(f"{name} has changed since it was exported")
    if faults:
        raise BundleError(
            f"bundle {folder} is damaged: {'; '.join(faults)}; copy or export it again"
        )


def _manifest_of(data: dict[str, Any]) -> Manifest:
    graphs = {name: GraphRecord(**record) for name, record in data.pop("graphs").items()}
    files = {name: FileRecord(**record) for name, record in data.pop("files").items()}
    lowering = lowering_from_json(data.pop("lowering"))
    manifest = Manifest(graphs=graphs, files=files, lowering=lowering, **data)
    if not all(isinstance(layer, int) for layer in manifest.layers):
        raise TypeError(f"layers={manifest.layers!r} are not integers")
    if not all(isinstance(graph.file, str) for graph in graphs.values()):
        raise TypeError("a graph's file is not a string")
    return manifest


DOCUMENT = VersionedJson(
    FORMAT_VERSION, OLDEST_FORMAT, frozenset({"checkpoint", "graphs"}), _manifest_of
)
BUNDLE = FolderKind(
    MANIFEST_FILE,
    is_bundle,
    re.compile(
        r"(manifest|config|tokenizer)\.json|embedding(_scales)?\.npy"
        r"|(vision|head|rebase|layers/\d+)\.(onnx|data)|engines/.*"
    ),
)


def _refuse_escape(folder: Path, name: str) -> None:
    relative, root = PurePosixPath(name), folder.resolve()
    try:
        target = (root / relative).resolve()
        is_inside = any(target.is_relative_to(allowed) for allowed in _content_folders(root))
    except (ValueError, OSError, RuntimeError):  # a null byte, a cycle of links
        is_inside = False
    if not is_inside or relative.is_absolute() or ".." in relative.parts or "\\" in name:
        raise BundleError(
            f"{folder / MANIFEST_FILE} names {name!r}, which is outside the bundle's folder; "
            "do not trust this bundle"
        )


def _content_folders(root: Path) -> list[Path]:
    """Folders that may hold a bundle's files: its own, and `blobs` in the Hugging Face Hub's cache.

    The cache of a repository has the files in `blobs/` and links to them in `snapshots/REVISION/`.
    """
    caches = [each.parent for each in root.parents if each.name == "snapshots"]
    return [root, *(cache / "blobs" for cache in caches)]
