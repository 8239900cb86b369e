"""Settings of OpenCV and FFmpeg, which both take from the environment."""

import os

# OpenCV's default, and that FFmpeg may use a connection again. Otherwise it asks web servers to
# close it, and FFmpeg 8 sends its next request over it all the same if the answer does not say that
# it will be closed: an mp4 with its index at the end then has no frames.
FFMPEG_OPTIONS = "rtsp_transport;tcp|multiple_requests;1"


def use_ffmpeg_options() -> None:
    """Have OpenCV open streams with `FFMPEG_OPTIONS`, unless the user chose others."""
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", FFMPEG_OPTIONS)


def quiet_decoders() -> None:
    """Silence the messages of OpenCV and FFmpeg about damaged video; cv2 reads these at import."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
