"""The PyTorch model as the reference that a bundle is compared with."""

import math
from functools import cached_property, partial
from pathlib import Path

import torch

from mod_edge.bundle.bundle import Bundle
from mod_edge.export.bundle_writer import graph_weights
from mod_edge.model.checkpoint import checkpoint_of_bundle
from mod_edge.model.quantized import quantize_model
from mod_edge.model.video_llm import VideoLLM
from mod_edge.plan.protocol import Protocol
from mod_edge.plan.signature import GraphSignature
from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.runtime.loaded_model import LoadedModel
from mod_edge.verification.graph_check import GraphResult, compare_outputs
from mod_edge.verification.recording import Arrays, GraphRecording, StreamTrace, held_dtype
from mod_edge.verification.reference import Reference, is_judged_by_cost
from mod_edge.verification.reference_graph import ReferenceGraph, in_dtype
from mod_edge.verification.reference_stream import MAX_FRAMES, follow_stream, record_stream
from mod_edge.verification.sample_video import SampleVideo
from mod_edge.verification.stream_backends import check_backend
from mod_edge.verification.stream_check import StreamResult, check_stream
from mod_edge.verification.tolerances import (
    StreamQuantizingCost,
    StreamTolerance,
)


class TorchReference(Reference):
    """The reference model in float32, and a short stream recorded with it.

    For a quantized bundle it is the model with the same dequantized weights and the same rounding
    of activations, so that errors are the graphs' own.
    """

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
        self._model = self._load_model()
        weights = f", weights {bundle.lowering.weight_format}"
        quantized = weights if bundle.lowering.is_quantized else ""
        self.name = f"torch fp32{quantized} (torch {torch.__version__})"
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
            dtype = getattr(torch, lowering.dtype)
            return [
                {name: array.astype(dtypes[name]) for name, array in outputs.items()}
                for outputs in graph.run(graph.module(dtype), dtype, {})
            ]

        return compare_outputs(recording, f"torch {lowering.precision}", run)

    def stream_in_dtype(self) -> StreamResult | None:
        """See `Reference`."""
        precision = self._bundle.lowering.precision
        if precision == "fp32":
            return None
        return check_backend(
            self._bundle,
            self.trace,
            self.follow,
            self.stream_cost,
            f"torch {precision}",
            self._load_in_dtype,
        )

    @cached_property
    def stream_cost(self) -> StreamQuantizingCost | None:
        """See `Reference`; the model with the checkpoint's weights is in memory beside its own."""
        from mod_edge.runtime.cpu.torch_model import TorchModel

        bundle = self._bundle
        if not is_judged_by_cost(bundle):
            return None
        protocol = Protocol(bundle.config.stream_config, bundle.tokenizer, self.trace.threshold)
        with TorchModel(self._checkpoint.load_model()).open_stream() as state:
            result = check_stream(
                self.trace,
                state,
                bundle.config,
                protocol,
                StreamTolerance(math.inf, math.inf, math.inf),
                backend="the checkpoint's weights",
                follow=self.follow,
            )
        return StreamQuantizingCost(result.largest, result.mean, result.gap)

    def _load_in_dtype(self, _trace: StreamTrace) -> LoadedModel:
        from mod_edge.runtime.cpu.torch_model import TorchModel

        dtype = getattr(torch, self._bundle.lowering.dtype)
        return TorchModel(in_dtype(self._load_model(), dtype))

    def _load_model(self) -> VideoLLM:
        return quantize_model(self._checkpoint.load_model(), self._bundle.lowering)

    def _graph(self, signature: GraphSignature) -> ReferenceGraph:
        lowering = self._bundle.lowering
        original = partial(graph_weights, self._checkpoint) if lowering.is_quantized else None
        return ReferenceGraph(self._model, signature, lowering, self._recorder, original)
