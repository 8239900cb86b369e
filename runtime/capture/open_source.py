"""Open the source that a user names: a file, a stream, a pipeline or a camera."""

from pathlib import Path

from mod_edge.profiles import Camera
from mod_edge.runtime.capture.live_capture import LiveCapture
from mod_edge.runtime.capture.source_name import parse_source
from mod_edge.runtime.capture.video_file import VideoFile


def open_source(
    source: int | str | Path,
    *,
    fps: float,
    max_frames: int | None = None,
    wanted: Camera | None = None,
) -> VideoFile | LiveCapture:
    """The frames of a source: of a file all, of a live source the newest.

    Args:
        source: camera number, path of a video file, or a text as `parse_source` reads it.
        fps: frames/s for the model.
        max_frames: end after this many frames.
        wanted: picture size and rate to request from a camera.

    Raises:
        SourceError: the text names no source, or the source cannot be opened.
        ConfigError: fps or max_frames is not positive.
    """
    if isinstance(source, str):
        source = parse_source(source)
    if isinstance(source, Path):
        return VideoFile(source, fps=fps, max_frames=max_frames)
    return LiveCapture(source, fps=fps, max_frames=max_frames, wanted=wanted)
