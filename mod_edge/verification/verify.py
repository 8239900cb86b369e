"""`mod-edge verify`: compares every graph of a bundle and the whole stream with the reference.

The reference is the PyTorch model of the bundle's checkpoint or, on a device without PyTorch, the
golden files saved from it. Each graph gets inputs recorded from a real stream and is compared
alone, so that errors do not add up; then every backend runs the stream from frames to answers.

The reference of a quantized bundle has the same dequantized weights and rounds the same activations
(`model.quantized`). What quantizing costs against the checkpoint's own weights is measured beside.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mod_edge.bundle.bundle import Bundle, open_bundle
from mod_edge.bundle.staging import staged_folder
from mod_edge.native.onnx_session import num_threads
from mod_edge.plan.targets import Lowering
from mod_edge.progress import OnStep, not_shown
from mod_edge.runtime.capture.opencv import open_file
from mod_edge.verification.golden import GOLDEN, Golden, GoldenWriter, require_numpy_dtypes
from mod_edge.verification.graph_backends import GraphBackend, NotRun, graph_backends
from mod_edge.verification.graph_check import GraphResult, check_graph
from mod_edge.verification.graph_evaluator import evaluator_backend
from mod_edge.verification.recording import GraphRecording, StreamTrace
from mod_edge.verification.reference import Reference
from mod_edge.verification.stream_backends import check_streams, stream_limits
from mod_edge.verification.stream_check import STREAM, StreamResult
from mod_edge.verification.tensorrt_backend import engine_backend, find_tensorrt

EVERY_GRAPH = "every graph"


@dataclass(frozen=True)
class VerifyReport:
    """The results of `mod-edge verify`.

    Attributes:
        bundle: the folder.
        reference: name of the reference.
        lowering: the bundle's.
        steps: kinds of the recorded steps of the layers, or of the only graph.
        graphs: results by graph and backend, in the order of a step.
        streams: results by backend.
        threads: of ONNX Runtime, on the CPU.
    """

    bundle: str
    reference: str
    lowering: Lowering
    steps: list[str]
    graphs: list[GraphResult]
    streams: list[StreamResult]
    threads: int

    @property
    def bad_graphs(self) -> list[str]:
        """Names of the graphs that failed on some backend, in the order of a step."""
        return list(dict.fromkeys(each.graph for each in self.graphs if each.status == "failed"))

    @property
    def is_ok(self) -> bool:
        """Whether nothing failed and something was run."""
        statuses = {graph.status for graph in self.graphs}
        statuses |= {stream.status for stream in self.streams}
        return "failed" not in statuses and "ok" in statuses

    def to_json(self) -> dict[str, Any]:
        """One JSON document; infinite and NaN numbers are null."""
        document = {**asdict(self), "lowering": self.lowering.to_json()}
        return {"ok": self.is_ok, "bad_graphs": self.bad_graphs, **_finite(document)}


def _finite(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: _finite(value) for key, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [_finite(value) for value in document]
    is_number = not isinstance(document, float) or math.isfinite(document)
    return document if is_number else None


def verify_bundle(
    folder: Path,
    checkpoint: Path,
    *,
    graph: str | None = None,
    source: Path | None = None,
    golden: Path | None = None,
    force: bool = False,
    on_step: OnStep = not_shown,
) -> VerifyReport:
    """Compare a bundle with the PyTorch model that it was made from.

    Args:
        folder: the bundle.
        checkpoint: that it was made from.
        graph: compare only this graph, without the stream; None for all graphs and the stream.
        source: video file to record from; None generates one.
        golden: save golden files of what is compared into this new folder.
        force: replace `golden` if it exists.
        on_step: called with the part that begins, the number of parts done and their total.

    Raises:
        BundleError: a damaged bundle, or one of another checkpoint.
        CheckpointError: a damaged checkpoint.
        ConfigError: no such graph, a video that is too short, or `golden` exists.
        SourceError: the video cannot be read.
    """
    if source is not None:
        open_file(source).release()  # its errors, before the model is loaded
    bundle = open_bundle(folder, hash_all=True)
    bundle.signatures(graph)
    from mod_edge.verification.torch_reference import TorchReference

    if golden is None:
        on_step("reference", 0, 1)
        return _verify(bundle, TorchReference(bundle, checkpoint, source), graph, None, on_step)
    with staged_folder(golden, kind=GOLDEN, force=force) as staging:
        require_numpy_dtypes(bundle.lowering)
        on_step("reference", 0, 1)
        reference = TorchReference(bundle, checkpoint, source)
        writer = GoldenWriter(staging, bundle.manifest, reference.name)
        report = _verify(bundle, reference, graph, writer, on_step)
        if graph is None:
            writer.add_stream(reference.trace, reference.stream_cost)
        writer.finish()
    return report


def verify_golden(
    folder: Path,
    golden: Path,
    *,
    graph: str | None = None,
    on_step: OnStep = not_shown,
) -> VerifyReport:
    """Compare a bundle with golden files, without PyTorch; see `verify_bundle`.

    Raises:
        BundleError: a damaged bundle, or golden files that are damaged or of another bundle.
        ConfigError: no such graph, in the bundle or in the golden files.
    """
    bundle = open_bundle(folder, hash_all=True)
    return _verify(bundle, Golden(golden, bundle), graph, None, on_step)


def _verify(
    bundle: Bundle,
    reference: Reference,
    graph: str | None,
    writer: GoldenWriter | None,
    on_step: OnStep,
) -> VerifyReport:
    signatures = bundle.signatures(graph)
    backends, not_run = _graph_backends(bundle, reference.trace)
    graphs: list[GraphResult] = []
    kinds: dict[str, None] = {}
    for done, signature in enumerate(signatures):
        on_step(signature.name, done, len(signatures) + 1)
        recording = reference.recording(signature)
        if recording is None:
            graphs.append(GraphResult(signature.name, "", "not run", "it has no golden files"))
            continue
        if graph is not None or signature.kind.is_layer:
            kinds |= dict.fromkeys(step.kind for step in recording.steps)
        if writer is not None:
            writer.add_graph(recording)
        in_dtype = reference.graph_in_dtype(recording)
        graphs += [in_dtype] if in_dtype else []
        graphs += _check_graph(bundle, recording, backends)
    graphs += [GraphResult(EVERY_GRAPH, each.name, "not run", each.reason) for each in not_run]
    streams: list[StreamResult] = []
    if graph is None:
        on_step(STREAM, len(signatures), len(signatures) + 1)
        streams = _check_streams(bundle, reference)
    return VerifyReport(
        str(bundle.folder),
        reference.name,
        bundle.lowering,
        list(kinds),
        graphs,
        streams,
        num_threads(),
    )


def _check_graph(
    bundle: Bundle, recording: GraphRecording, backends: list[GraphBackend]
) -> Iterator[GraphResult]:
    """The graph's result on every backend that is for its form of weights."""
    signature = recording.signature
    form = bundle.lowering.weight_form(signature.kind)
    path = bundle.folder / signature.file
    for backend in backends:
        if not backend.takes(form):
            continue
        if reason := backend.obstacle(path, form):
            yield GraphResult(signature.name, backend.name, "not run", reason)
        else:
            yield check_graph(path, recording, backend)


def _graph_backends(
    bundle: Bundle, trace: StreamTrace | None
) -> tuple[list[GraphBackend], list[NotRun]]:
    backends, not_run = graph_backends(bundle.lowering)
    evaluator = evaluator_backend(bundle.lowering)
    if isinstance(evaluator, NotRun):
        not_run.append(evaluator)
    elif evaluator is not None:
        backends.append(evaluator)
    if bundle.target.compiler and trace is not None:
        tensorrt = find_tensorrt(bundle)
        if isinstance(tensorrt, NotRun):
            not_run.append(tensorrt)
        else:
            backends.append(engine_backend(bundle, tensorrt, stream_limits(bundle, trace)))
    return backends, not_run


def _check_streams(bundle: Bundle, reference: Reference) -> list[StreamResult]:
    if not bundle.is_whole:
        missing = "the bundle does not contain all layers"
        return [StreamResult("every backend", "not run", missing)]
    if reference.trace is None:
        return [StreamResult("every backend", "not run", "no golden files of the stream")]
    in_dtype = reference.stream_in_dtype()
    results = [in_dtype] if in_dtype else []
    return results + list(
        check_streams(bundle, reference.trace, reference.follow, reference.stream_cost)
    )
