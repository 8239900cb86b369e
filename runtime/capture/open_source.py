"""From what a user names to the source of its frames."""

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
    """What `path` names (file, stream address, pipeline), or the camera of this number.

    One of the two is None; `wanted` is what a camera is asked for.
    """
    if camera is not None:
        return LiveCapture(camera, fps=fps, max_frames=max_frames, wanted=wanted)
    assert path is not None
    if is_pipeline(path) or is_address(path):
        return LiveCapture(path, fps=fps, max_frames=max_frames)
    return VideoFile(path, fps=fps, max_frames=max_frames)
