"""Open the source that a user names: files, a recording, a stream, a pipeline or a camera."""

from pathlib import Path

from mod_edge.profiles import Camera
from mod_edge.runtime.capture.image_files import ImageFiles, images_at
from mod_edge.runtime.capture.live_capture import LiveCapture
from mod_edge.runtime.capture.open_live import OpenedLive, is_recording, live_reader, open_stream
from mod_edge.runtime.capture.opencv import open_file
from mod_edge.runtime.capture.source import (
    LIVE,
    RECORDING,
    CapturePolicy,
    check_live,
    check_recorded,
)
from mod_edge.runtime.capture.source_name import (
    ImagePaths,
    SourceName,
    StreamAddress,
    VideoPath,
    source_name,
)
from mod_edge.runtime.capture.video_file import VideoFile


def open_source(
    source: int | str | Path | SourceName,
    *,
    fps: float,
    max_frames: int | None = None,
    wanted: Camera | None = None,
    image_fps: float | None = None,
    policy: CapturePolicy | None = None,
) -> VideoFile | ImageFiles | LiveCapture:
    """The frames of a source: of files and recordings all, of a live source the newest.

    Args:
        source: camera number, path of a file or folder, or a text as `parse_source` reads it.
        fps: frames/s for the model.
        max_frames: end after this many frames.
        wanted: picture size, rate and pixel format to request from a camera; see `open_live`.
        image_fps: frames/s of images; None takes each image for one frame of the model.
        policy: of a live source; None keeps the newest frame of it and every frame of others.

    Raises:
        SourceError: the text names no source, or the source cannot be opened.
        ConfigError: a rate or max_frames is not positive, or the policy is not for such a source.
    """
    named, live = source_name(source), policy or LIVE
    if isinstance(named, VideoPath | ImagePaths):
        check_recorded(named.name, policy)
    if isinstance(named, VideoPath):
        return VideoFile(named.path, fps=fps, max_frames=max_frames)
    if isinstance(named, ImagePaths):
        return ImageFiles(named.pattern, fps=fps, image_fps=image_fps, max_frames=max_frames)
    if isinstance(named, StreamAddress):
        capture = open_stream(named, live.stall_s)
        if is_recording(capture):
            check_recorded(named.name, policy)
            return VideoFile(
                named.url, fps=fps, max_frames=max_frames, policy=RECORDING, opened=capture
            )
        opened = OpenedLive(live_reader(named, capture, live.stall_s), [])
        return LiveCapture(named, fps=fps, max_frames=max_frames, policy=live, opened=opened)
    return LiveCapture(named, fps=fps, max_frames=max_frames, policy=live, wanted=wanted)


def check_source(source: SourceName, policy: CapturePolicy | None = None) -> None:
    """Raise what can be known of a source without its device or server, before a model is loaded.

    Args:
        source: the source.
        policy: as for `open_source`.

    Raises:
        SourceError: the video cannot be opened, or there are no images.
        ConfigError: the policy is not for such a source.
    """
    if isinstance(source, VideoPath | ImagePaths):
        check_recorded(source.name, policy)
    elif not isinstance(source, StreamAddress):  # which may be a recording
        check_live(source.name, policy or LIVE)
    if isinstance(source, VideoPath):
        open_file(source.path).release()
    elif isinstance(source, ImagePaths):
        images_at(source.pattern)
