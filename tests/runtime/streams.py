"""One stream on ONNX Runtime, for tests that want no second one on its model."""

from mod_edge.bundle.bundle import open_bundle
from mod_edge.runtime.cpu.onnx_model import OnnxModel, OnnxStream
from mod_edge.runtime.loaded_model import StreamLimits


def onnx_stream(folder, capacity, *, max_step_tokens, frames_per_step) -> OnnxStream:
    """A stream on a model of its own, which lives as long as it."""
    limits = StreamLimits(capacity, max_step_tokens, frames_per_step)
    return OnnxModel(open_bundle(folder), limits).open_stream()
