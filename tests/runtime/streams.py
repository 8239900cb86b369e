"""A stream on ONNX Runtime, sources of two streams, and outcomes to compare."""

from dataclasses import fields, replace
from itertools import islice

from mod_edge.bundle.bundle import open_bundle
from mod_edge.runtime.capture.source import Frame
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.cpu.onnx_model import OnnxModel, OnnxStream
from mod_edge.runtime.events import FrameEvent, ReplyEvent, RollEvent
from mod_edge.runtime.loaded_model import StreamLimits
from mod_edge.runtime.queries import Query
from mod_edge.verification.sample_video import SampleVideo
from tests.runtime.stand_in_model import FRAMES_PER_STEP, MAX_STEP_TOKENS

OPTIONS = SessionOptions(
    threshold=0.725,
    max_new_tokens=12,
    frames_per_step=FRAMES_PER_STEP,
    max_step_tokens=MAX_STEP_TOKENS,
    evict_fraction=0.125,
)
TEXT_MINIMUM = 80
FPS = 2.0


class Part:
    """Some frames of the drawn video, as a source of their own."""

    is_live = False
    is_ready = True
    num_dropped = 0
    warnings = ()

    def __init__(self, first, num_frames):
        self._first, self._num_frames = first, num_frames

    def __iter__(self):
        video = SampleVideo(FPS, self._first + self._num_frames)
        for index, frame in enumerate(islice(video, self._first, None)):
            yield Frame(index, index / FPS, frame.image)


# Of two lengths, so that one goes on alone; the queries fall between frames of one step.
STREAMS = (
    (Part(0, 30), (Query("Please narrate the video in real time."), Query("What happens?", 7.2))),
    (Part(17, 22), (Query("And where?", 3.1),)),
)


def without_times(event):
    """The event but for the milliseconds that it took."""
    took = [each.name for each in fields(event) if each.name.endswith("_ms")]
    return replace(event, **dict.fromkeys(took, 0.0))


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
