"""Run a bundle: video in, text out, over a rolling KV cache.

from mod_edge.runtime import Query, VideoFile, open_session

with open_session("bundle", window="120s") as session, VideoFile("clip.mp4", fps=2) as source:
    for event in session.stream(source, [Query("Please narrate the video in real time.")]):
        print(event)
    print(session.summary())
"""

from mod_edge.plan.sampling import Sampling
from mod_edge.runtime.capture.image_files import ImageFiles
from mod_edge.runtime.capture.live_capture import LiveCapture
from mod_edge.runtime.capture.live_source import (
    FrozenEvent,
    GapEvent,
    LostEvent,
    SizeEvent,
    UnfrozenEvent,
)
from mod_edge.runtime.capture.open_source import open_source
from mod_edge.runtime.capture.source import CaptureCounts, CapturePolicy, Frame, Keep
from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.runtime.events import (
    BadLineEvent,
    Event,
    FailureEvent,
    FrameDetails,
    FrameEvent,
    InstructionEvent,
    QueryEvent,
    ReplyEvent,
    RollEvent,
    Summary,
    TextEvent,
    TextSummary,
    ThresholdEvent,
)
from mod_edge.runtime.open_session import open_session, open_streams, open_text_session
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import Session
from mod_edge.runtime.streams import StreamEvent, Streams
from mod_edge.runtime.text_session import TextSession

__all__ = [
    "BadLineEvent",
    "CaptureCounts",
    "CapturePolicy",
    "Event",
    "FailureEvent",
    "Frame",
    "FrameDetails",
    "FrameEvent",
    "FrozenEvent",
    "GapEvent",
    "ImageFiles",
    "InstructionEvent",
    "Keep",
    "LiveCapture",
    "LostEvent",
    "Query",
    "QueryEvent",
    "ReplyEvent",
    "RollEvent",
    "Sampling",
    "Session",
    "SizeEvent",
    "StreamEvent",
    "Streams",
    "Summary",
    "TextEvent",
    "TextSession",
    "TextSummary",
    "ThresholdEvent",
    "UnfrozenEvent",
    "VideoFile",
    "open_session",
    "open_source",
    "open_streams",
    "open_text_session",
]
