"""The PyTorch model as the reference that a bundle is compared with."""

from functools import partial
from pathlib import Path

import torch

from mod_edge.bundle.bundle import Bundle
from mod_edge.model.checkpoint import checkpoint_of_bundle
from mod_edge.plan.signature import GraphSignature
from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.runtime.loaded_model import LoadedModel
from mod_edge.verification.graph_check import GraphResult, compare_outputs, run_steps
from mod_edge.verification.recording import Arrays, GraphRecording, StreamTrace, held_dtype
from mod_edge.verification.reference import Reference
from mod_edge.verification.reference_graph import ReferenceGraph, ReferenceRunner, in_dtype
from mod_edge.verification.reference_stream import MAX_FRAMES, follow_stream, record_stream
from mod_edge.verification.sample_video import SampleVideo
from mod_edge.verification.stream_backends import check_backend
from mod_edge.verification.stream_check import StreamResult


class TorchReference(Reference):
    """The reference model in float32, and a short stream recorded with it."""

    def __init__(self, bundle: Bundle, checkpoint: Path, source: Path | None) -> None:
        """Load the model and record a stream with it.

        Args:
            bundle: to be compared with it.
            checkpoint: that the bundle was made from.
            source: video file; None generates one.

        Raises:
            CheckpointError: the checkpoint is damaged.
            BundleError: the bundle was made from another checkpoint.
            ConfigError: the video is too short, or the bundle's cache too small.
            SourceError: the video cannot be read.
        """
        fingerprint = bundle.manifest.checkpoint["fingerprint"]
        self._checkpoint = checkpoint_of_bundle(checkpoint, fingerprint)
        self._bundle = bundle
        self._model = self._checkpoint.load_model()
        self.name = f"torch fp32 (torch {torch.__version__})"
        fps = bundle.config.stream_config.frame_fps
        record = partial(
            record_stream, self._model, self._checkpoint.tokenizer, lowering=bundle.lowering
        )
        self.trace: StreamTrace
        if source is None:
            self._recorder, self.trace = record(SampleVideo(fps, MAX_FRAMES))
        else:
            with VideoFile(source, fps=fps, max_frames=MAX_FRAMES) as frames:
                self._recorder, self.trace = record(frames)
        self.follow = partial(follow_stream, self._model, self.trace)

    def recording(self, signature: GraphSignature) -> GraphRecording:
        """See `Reference`."""
        return self._graph(signature).recording()

    def graph_in_dtype(self, recording: GraphRecording) -> GraphResult | None:
        """See `Reference`."""
        lowering = recording.lowering
        if lowering.precision == "fp32":
            return None
        graph = self._graph(recording.signature)
        dtypes = {spec.name: held_dtype(spec) for spec in recording.signature.outputs}

        def run() -> list[Arrays]:
            runner = ReferenceRunner(graph, getattr(torch, lowering.dtype), {})
            return [
                {name: array.astype(dtypes[name]) for name, array in outputs.items()}
                for outputs in run_steps(runner, recording.steps)
            ]

        return compare_outputs(recording, f"torch {lowering.precision}", run)

    def stream_in_dtype(self) -> StreamResult | None:
        """See `Reference`."""
        precision = self._bundle.lowering.precision
        if precision == "fp32":
            return None
        return check_backend(
            self._bundle, self.trace, self.follow, f"torch {precision}", self._load_in_dtype
        )

    def _load_in_dtype(self, _trace: StreamTrace) -> LoadedModel:
        from mod_edge.runtime.cpu.torch_model import TorchModel

        dtype = getattr(torch, self._bundle.lowering.dtype)
        return TorchModel(in_dtype(self._checkpoint.load_model(), dtype))

    def _graph(self, signature: GraphSignature) -> ReferenceGraph:
        return ReferenceGraph(self._model, signature, self._bundle.lowering, self._recorder)
