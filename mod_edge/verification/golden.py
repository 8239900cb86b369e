"""Golden files: recorded inputs and the reference's outputs, for devices without PyTorch.

    manifest.json                       format 2, see `GoldenManifest` and `versioned_json`
    layer-01/inputs.json, outputs.json  of every graph, for `polygraphy run` with --load-inputs
                                        and --load-outputs
    layer-01/original.json              of every quantized graph, the outputs with the checkpoint's
                                        weights
    stream.npz                          the whole stream, see `trace_file`

Steps in which a kept and a dropped token have almost the same router logit are not saved: either
could be kept, and only the running reference can follow the other selection.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy.comparator import RunResults
from polygraphy.exception import PolygraphyException
from polygraphy.json import load_json, save_json
from polygraphy.logger import G_LOGGER

from mod_edge.bundle.bundle import Bundle
from mod_edge.bundle.manifest import MANIFEST_FILE, FileRecord, Manifest, record_file
from mod_edge.bundle.staging import FolderKind
from mod_edge.bundle.versioned_json import SHAPE_ERRORS, VersionedJson
from mod_edge.errors import BundleError, ConfigError
from mod_edge.native.int8_products import has_int8_products
from mod_edge.plan.parity import TIED_LOGITS, cut_margin
from mod_edge.plan.signature import GraphSignature
from mod_edge.plan.targets import Lowering
from mod_edge.verification.recording import (
    AFTER_ROLL,
    Arrays,
    GraphRecording,
    GraphStep,
    Selections,
    StreamTrace,
)
from mod_edge.verification.reference import Reference, is_judged_by_cost
from mod_edge.verification.tolerances import (
    StreamQuantizingCost,
    graph_tolerance,
)
from mod_edge.verification.trace_file import read_trace, write_trace

FORMAT_VERSION, OLDEST_FORMAT = 2, 1
INPUTS_FILE, OUTPUTS_FILE, STREAM_FILE = "inputs.json", "outputs.json", "stream.npz"
ORIGINAL_FILE = "original.json"
LEAST_MARGIN = 10 * TIED_LOGITS
# Polygraphy's reader assumes the shape of its files, and recurses.
LOADING_ERRORS = (PolygraphyException, OSError, IndexError, RecursionError, *SHAPE_ERRORS)
ADVICE = "save them again with: mod-edge verify BUNDLE --checkpoint CKPT --save-golden"


@dataclass(frozen=True)
class GoldenManifest:
    """The contents of a golden folder.

    Attributes:
        reference: name of the reference that computed the outputs.
        graphs: by name, the hashes of the graph's files in the bundle, the kinds of its steps, and
            the command that compares the graph with Polygraphy alone, if it can.
        files: the golden files themselves.
        stream_cost: of quantizing; None if the bundle's stream is not judged by it or not here.
    """

    reference: str
    graphs: dict[str, dict[str, Any]]
    files: dict[str, FileRecord]
    stream_cost: StreamQuantizingCost | None = None


def is_golden(folder: Path) -> bool:
    """Whether `folder` holds golden files, of any format."""
    return DOCUMENT.is_at(folder / MANIFEST_FILE)


def require_numpy_dtypes(lowering: Lowering) -> None:
    """Check that golden files can hold the bundle's dtype.

    Raises:
        ConfigError: the bundle is in bfloat16.
    """
    if lowering.precision == "bf16":
        raise ConfigError(
            "golden files are numpy arrays, and numpy has no bfloat16; save those of the same "
            "checkpoint's fp16 or fp32 bundle"
        )


class GoldenWriter:
    """Writes golden files into an empty folder, graph by graph."""

    def __init__(self, folder: Path, manifest: Manifest, reference: str) -> None:
        """Write into `folder`, which exists and is empty.

        Args:
            folder: of the golden files.
            manifest: of the bundle, whose files were checked against it.
            reference: name of the reference.
        """
        self._folder, self._bundle = folder, manifest
        self._graphs: dict[str, dict[str, Any]] = {}
        self._reference = reference
        self._stream_cost: StreamQuantizingCost | None = None

    def add_graph(self, recording: GraphRecording) -> None:
        """Write one graph's steps and expected outputs."""
        outputs = recording.outputs({})
        numbers = _unambiguous_steps(recording.steps, outputs)
        folder = self._folder / recording.signature.name
        folder.mkdir()
        chosen = [outputs[number] for number in numbers]
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            feeds = [recording.steps[number].inputs for number in numbers]
            save_json(feeds, str(folder / INPUTS_FILE))
        self._save(chosen, folder / OUTPUTS_FILE)
        if recording.original is not None:
            original = recording.original({})
            self._save([original[number] for number in numbers], folder / ORIGINAL_FILE)
        entry = {
            "bundle_files": _bundle_files(self._bundle, recording.signature),
            "steps": [recording.steps[number].kind for number in numbers],
        }
        # Polygraphy cannot set the session's option without which x86 CPUs without VNNI multiply
        # int8 wrongly: it would report sound graphs.
        if not has_int8_products(recording.lowering.weight_form(recording.signature.kind)):
            entry["polygraphy"] = _command(recording, chosen)
        self._graphs[recording.signature.name] = entry

    def _save(self, outputs: list[Arrays], path: Path) -> None:
        results = RunResults()
        results.add(outputs, runtime=0.0, runner_name=self._reference)
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            results.save(str(path))

    def add_stream(self, trace: StreamTrace, cost: StreamQuantizingCost | None) -> None:
        """Write the whole stream and keep what quantizing costs it, if it is judged by that."""
        write_trace(trace, self._folder / STREAM_FILE)
        self._stream_cost = cost

    def finish(self) -> None:
        """Write the manifest."""
        files = sorted(path for path in self._folder.rglob("*") if path.is_file())
        manifest = GoldenManifest(
            self._reference,
            self._graphs,
            {path.relative_to(self._folder).as_posix(): record_file(path) for path in files},
            self._stream_cost,
        )
        document = asdict(manifest)
        if manifest.stream_cost is None:  # earlier versions refuse keys that they do not know
            del document["stream_cost"]
        DOCUMENT.write(self._folder / MANIFEST_FILE, document)


class Golden(Reference):
    """Golden files that belong to a bundle."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        """Open and check them.

        Raises:
            BundleError: no golden files, or damaged ones.
        """
        self._folder, self._bundle = folder, bundle.manifest
        self._manifest = _read_manifest(folder)
        _check_files(folder, self._manifest)
        self.name = f"{folder} ({self._manifest.reference})"
        has_stream = STREAM_FILE in self._manifest.files
        self.trace = read_trace(folder / STREAM_FILE) if has_stream else None
        if has_stream and is_judged_by_cost(bundle) and self._manifest.stream_cost is None:
            raise BundleError(f"{folder} does not say what quantizing costs the stream; {ADVICE}")

    @property
    def stream_cost(self) -> StreamQuantizingCost | None:
        """See `Reference`."""
        return self._manifest.stream_cost

    def recording(self, signature: GraphSignature) -> GraphRecording | None:
        """See `Reference`.

        Raises:
            BundleError: they are of another graph, or damaged.
        """
        entry = self._manifest.graphs.get(signature.name)
        if entry is None:
            return None
        if entry["bundle_files"] != _bundle_files(self._bundle, signature):
            raise BundleError(
                f"{self._folder} has golden files of a different {signature.file}; {ADVICE}"
            )
        folder = self._folder / signature.name
        try:
            with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
                feeds: list[Mapping[str, Any]] = load_json(str(folder / INPUTS_FILE))
            steps = tuple(
                GraphStep(kind, dict(feed))
                for kind, feed in zip(entry["steps"], feeds, strict=True)
            )
            outputs = _load(folder / OUTPUTS_FILE)
            has_original = f"{signature.name}/{ORIGINAL_FILE}" in self._manifest.files
            original = partial(_saved, _load(folder / ORIGINAL_FILE)) if has_original else None
        except LOADING_ERRORS as exc:
            raise BundleError(f"{folder} is damaged ({exc}); {ADVICE}") from exc
        return GraphRecording(
            signature, self._bundle.lowering, steps, partial(_saved, outputs), original
        )


def _load(path: Path) -> list[Arrays]:
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        results = RunResults.load(str(path))
    return [dict(each.items()) for each in results[0][1]]


def _saved(outputs: list[Arrays], selections: Selections) -> list[Arrays]:
    assert not selections, "golden files have no router logits, so there are no ties to follow"
    return outputs


def _unambiguous_steps(steps: tuple[GraphStep, ...], outputs: list[Arrays]) -> list[int]:
    """Numbers of the steps to save: without ties; of each kind the one after a roll, if any."""
    clear = {
        step.kind: number
        for number, step in enumerate(steps)
        if step.router_logits is None
        or cut_margin(step.router_logits, outputs[number]["kept"].shape[1]) > LEAST_MARGIN
    }
    return sorted(number for kind, number in clear.items() if kind + AFTER_ROLL not in clear)


def _command(recording: GraphRecording, outputs: Sequence[Arrays]) -> str:
    """The `polygraphy run` command, for the golden folder; its default tolerance is too small.

    Polygraphy has one tolerance per output, so it is relative to the output's largest value, not
    the row's.
    """
    signature = recording.signature
    allowed = graph_tolerance(signature.kind, recording.lowering).largest
    largest = {
        spec.name: max(float(np.abs(each[spec.name]).max(initial=0)) for each in outputs)
        for spec in signature.outputs
        if spec.dtype != "int64"
    }
    tolerances = " ".join(f"{name}:{allowed * size:.1e}" for name, size in largest.items())
    return (
        f"polygraphy run BUNDLE/{signature.file} --onnxrt "
        f"--load-inputs {signature.name}/{INPUTS_FILE} "
        f"--load-outputs {signature.name}/{OUTPUTS_FILE} "
        f"--check-error-stat max --atol {tolerances}"
    )


def _bundle_files(manifest: Manifest, signature: GraphSignature) -> dict[str, str]:
    """Content hashes of the graph's files in the bundle."""
    names = signature.files
    return {name: manifest.files[name].sha256 for name in names if name in manifest.files}


def _read_manifest(folder: Path) -> GoldenManifest:
    advice = f"{ADVICE} {folder}"
    if not is_golden(folder):
        raise BundleError(f"{folder} has no golden files; {advice}")
    return DOCUMENT.read(folder / MANIFEST_FILE, advice=advice)


def _manifest_of(data: dict[str, Any]) -> GoldenManifest:
    files = {name: FileRecord(**record) for name, record in data.pop("files").items()}
    saved = data.pop("stream_cost", None)
    cost = StreamQuantizingCost(**saved) if saved else None
    return GoldenManifest(files=files, stream_cost=cost, **data)


DOCUMENT = VersionedJson(
    FORMAT_VERSION, OLDEST_FORMAT, frozenset({"reference", "graphs"}), _manifest_of
)
GOLDEN = FolderKind(
    MANIFEST_FILE,
    is_golden,
    re.compile(
        r"manifest\.json|stream\.npz|(vision|head|rebase|layer-\d+)/(inputs|outputs|original)\.json"
    ),
)


def _check_files(folder: Path, manifest: GoldenManifest) -> None:
    changed = [
        name
        for name, record in manifest.files.items()
        if not (folder / name).is_file() or record_file(folder / name) != record
    ]
    if changed:
        raise BundleError(
            f"{folder} is damaged: {', '.join(changed)} missing or changed; copy it again"
        )
