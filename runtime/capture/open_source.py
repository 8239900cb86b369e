"""Open the source that a user names: a video file, stream, pipeline or camera."""

from mod_edge.profiles import Camera
from mod_edge.runtime.capture.live_capture import LiveCapture
from mod_edge.runtime.capture.opencv import is_address, is_pipeline
from mod_edge.runtime.capture.video_file import VideoFile


def open_source(
    path: str | None,
    camera: int | None,
    *,
    fps: float,
    max_frames: int | None = None,
    wanted: Camera | None = None,
) -> VideoFile | LiveCapture:
    """The source at `path` (file, stream address or pipeline), or camera number `camera`.

    Exactly one of the two is None; `wanted` is requested from a camera.
    """
    if camera is not None:
        return LiveCapture(camera, fps=fps, max_frames=max_frames, wanted=wanted)
    assert path is not None
    if is_pipeline(path) or is_address(path):
        return LiveCapture(path, fps=fps, max_frames=max_frames)
    return VideoFile(path, fps=fps, max_frames=max_frames)
