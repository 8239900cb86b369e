"""Open the source that a user names: a file, a recording, a stream, a pipeline or a camera."""

from pathlib import Path

from mod_edge.profiles import Camera
from mod_edge.runtime.capture.live_capture import LiveCapture
from mod_edge.runtime.capture.opencv import is_recording, open_live
from mod_edge.runtime.capture.source import LIVE, RECORDING, CapturePolicy, check_recorded
from mod_edge.runtime.capture.source_name import is_address, name_of, parse_source
from mod_edge.runtime.capture.video_file import VideoFile


def open_source(
    source: int | str | Path,
    *,
    fps: float,
    max_frames: int | None = None,
    wanted: Camera | None = None,
    policy: CapturePolicy | None = None,
) -> VideoFile | LiveCapture:
    """The frames of a source: of a file or a recording all, of a live source the newest.

    Args:
        source: camera number, path of a video file, or a text as `parse_source` reads it.
        fps: frames/s for the model.
        max_frames: end after this many frames.
        wanted: picture size and rate to request from a camera.
        policy: of a live source; None keeps the newest frame of it and every frame of others.

    Raises:
        SourceError: the text names no source, or the source cannot be opened.
        ConfigError: fps or max_frames is not positive, or the policy is not for such a source.
    """
    if isinstance(source, str):
        source = parse_source(source)
    live = policy or LIVE
    if isinstance(source, Path):
        check_recorded(str(source), policy)
        return VideoFile(source, fps=fps, max_frames=max_frames)
    if is_address(source):
        opened = open_live(source, name_of(source), live.stall_s)
        if is_recording(opened):
            check_recorded(name_of(source), policy)
            return VideoFile(
                source, fps=fps, max_frames=max_frames, policy=RECORDING, opened=opened
            )
        return LiveCapture(source, fps=fps, max_frames=max_frames, policy=live, opened=opened)
    return LiveCapture(source, fps=fps, max_frames=max_frames, policy=live, wanted=wanted)
