"""A stream on ONNX Runtime, and the outcome of a stream to compare between backends."""

from mod_edge.bundle.bundle import open_bundle
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.cpu.onnx_model import OnnxModel, OnnxStream
from mod_edge.runtime.events import FrameEvent, ReplyEvent, RollEvent
from mod_edge.runtime.loaded_model import StreamLimits
from tests.runtime.stand_in_model import FRAMES_PER_STEP, MAX_STEP_TOKENS

OPTIONS = SessionOptions(
    threshold=0.725,
    max_new_tokens=12,
    frames_per_step=FRAMES_PER_STEP,
    max_step_tokens=MAX_STEP_TOKENS,
    evict_fraction=0.125,
)
TEXT_MINIMUM = 80


def outcome(events):
    """Decisions, replies and rolls: everything that must be equal on all backends."""
    decisions = [(event.index, event.decision) for event in events if isinstance(event, FrameEvent)]
    replies = [event.token_ids for event in events if isinstance(event, ReplyEvent)]
    rolls = [event.num_evicted for event in events if isinstance(event, RollEvent)]
    return decisions, replies, rolls


def onnx_stream(folder, capacity, *, max_step_tokens, frames_per_step) -> OnnxStream:
    """A stream on its own model."""
    limits = StreamLimits(capacity, max_step_tokens, frames_per_step)
    return OnnxModel(open_bundle(folder), limits).open_stream()
