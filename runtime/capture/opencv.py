"""Open a video file, camera or stream with OpenCV; errors give the reason, nothing is printed."""

import math
import os
import re
from pathlib import Path
from typing import Any, cast

import cv2

from mod_edge.errors import SourceError
from mod_edge.native.captured_stderr import captured_stderr
from mod_edge.native.native_path import is_utf8
from mod_edge.profiles import Camera
from mod_edge.runtime.capture.source import Image
from mod_edge.runtime.capture.source_name import is_address, is_pipeline

OPEN_TIMEOUT_S = 10.0
MAX_PIXEL_ASPECT = 4.0  # anamorphic video has 0.9 to 2; beyond it a header is damaged


def open_file(path: Path) -> cv2.VideoCapture:
    """The file, opened as a video.

    Raises:
        SourceError: it is missing, not a regular file, unreadable, empty, or not a video.
    """
    try:
        if path.is_dir():
            raise SourceError(f"{path} is a folder; name one video file in it")
        size_bytes = path.stat().st_size
        if not path.is_file():  # opening a pipe would block forever
            raise SourceError(f"{path} is not a regular file; for a camera give its number")
        with path.open("rb") as file:
            head = file.read(8)
    except (FileNotFoundError, NotADirectoryError, ValueError) as exc:
        # ValueError: no file can have such a name
        raise SourceError(f"there is no video file {path}; check the path") from exc
    except OSError as exc:
        raise SourceError(
            f"{path} cannot be read: {exc.strerror}; check the path and its permissions"
        ) from exc
    if not head:
        raise SourceError(f"{path} is empty (0 bytes); copy or record it again")
    if is_utf8(path):
        # FFmpeg would read what is before a colon (cam:1.mp4) as a protocol, but not after ./
        capture, reason = _open_quietly(os.path.join(os.curdir, path))
    else:
        with path.open("rb") as file:  # OpenCV crashes the process at such a name
            capture, reason = _open_quietly(f"/dev/fd/{file.fileno()}")
    if not capture.isOpened():
        raise SourceError(
            f"{path} cannot be read as a video{reason}: {size_bytes} bytes, first {head!r}; "
            f"wanted a whole mp4, mkv, webm or avi file that OpenCV {cv2.__version__} can decode; "
            "rewrite it with: ffmpeg -i VIDEO -c:v libx264 fixed.mp4"
        )
    return capture


def container_s(capture: cv2.VideoCapture, path: Path) -> float:
    """Seconds of the whole open file, its sound included; 0 where it is not known.

    OpenCV does not give the length, but FFmpeg's bit rate is the size divided by it.
    """
    rate_kbps = capture.get(cv2.CAP_PROP_BITRATE)
    return path.stat().st_size * 8 / 1000 / rate_kbps if rate_kbps > 0 else 0.0


def codec_of(capture: cv2.VideoCapture) -> str:
    """The four letters of the video's codec, such as avc1 or av01."""
    code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    return code.to_bytes(4, "little").decode("latin-1")


def start_s(capture: cv2.VideoCapture) -> float:
    """The video's start on the file's own clock in seconds; to be asked after the first grab().

    0 before OpenCV 4.11, which does not give it.
    """
    fps = capture.get(cv2.CAP_PROP_FPS)
    if not hasattr(cv2, "CAP_PROP_PTS") or fps <= 0:
        return 0.0
    file_s = capture.get(cv2.CAP_PROP_PTS) / fps
    return max(0.0, file_s - capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)


def pixel_aspect(capture: cv2.VideoCapture) -> float:
    """Width of a pixel divided by its height in the upright picture; 1 where it is not known."""
    width, height = capture.get(cv2.CAP_PROP_SAR_NUM), capture.get(cv2.CAP_PROP_SAR_DEN)
    if not (
        width > 0 and height > 0 and 1 / MAX_PIXEL_ASPECT <= width / height <= MAX_PIXEL_ASPECT
    ):
        return 1.0
    is_on_its_side = capture.get(cv2.CAP_PROP_ORIENTATION_META) % 180 == 90
    return height / width if is_on_its_side else width / height


def with_square_pixels(image: Image, aspect: float) -> Image:
    """The picture stretched along one side, so that it has the shape that people see.

    Args:
        image: (H, W, 3) uint8.
        aspect: width of a pixel divided by its height.
    """
    height, width = image.shape[:2]
    size = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
    return image if size == (width, height) else cast(Image, cv2.resize(image, size))


def open_live(source: int | str, name: str, read_timeout_s: float) -> cv2.VideoCapture:
    """The camera or stream, opened.

    Args:
        source: camera number, device path, stream address or GStreamer pipeline.
        name: used in messages.
        read_timeout_s: after which read() returns from a silent stream, also with a picture that
            the decoder held back; devices have their own.

    Raises:
        SourceError: it cannot be opened; the message says what to check.
    """
    if isinstance(source, str) and not is_utf8(source):  # OpenCV crashes the process at it
        raise SourceError(f"{name} has bytes that are not UTF-8; write them as %XX, as in %E9")
    if is_pipeline(source):
        capture, reason = _open_quietly(source, cv2.CAP_GSTREAMER)
        advice = (
            "try it with gst-launch-1.0 first; OpenCV must be built with GStreamer, as JetPack's "
            "is and PyPI's is not (mod-edge doctor shows it)"
        )
    elif is_address(source):
        limits = [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
            round(OPEN_TIMEOUT_S * 1000),
            cv2.CAP_PROP_READ_TIMEOUT_MSEC,  # FFmpeg's default of 30 s would delay close()
            math.ceil(read_timeout_s * 1000),
        ]
        capture, reason = _open_quietly(source, cv2.CAP_ANY, limits)
        advice = "check the address, user and password, and that the server answers from here"
    else:
        # V4L2 first: OpenCV would prefer GStreamer, which does not change the picture size.
        capture, reason = _open_quietly(source, cv2.CAP_V4L2)
        if not capture.isOpened():
            capture, reason = _open_quietly(source)
        devices = ", ".join(f"/dev/video{number}" for number in camera_numbers())
        advice = (
            f"this machine has {devices or 'no /dev/video*'}; check the number, that no other "
            "program uses the camera, that you are in the group video, and in a container that "
            "the device was passed in"
        )
    if not capture.isOpened():
        raise SourceError(f"{name} cannot be opened{reason}; {advice}")
    return capture


def is_recording(capture: cv2.VideoCapture) -> bool:
    """Whether an opened address has an end: its length is known, so it is not live.

    The header of most files has it, the playlist of a complete HLS video, the description of an
    RTSP recording. Where the length is unknown, OpenCV gives a large negative number of frames.
    """
    return capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0


def ask_camera(capture: cv2.VideoCapture, name: str, wanted: Camera) -> list[str]:
    """Request a picture size and frame rate; returns a warning if the camera uses others."""
    capture.set(cv2.CAP_PROP_FRAME_WIDTH, wanted.width)
    capture.set(cv2.CAP_PROP_FRAME_HEIGHT, wanted.height)
    capture.set(cv2.CAP_PROP_FPS, wanted.fps)
    width = round(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
    height = round(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    fps = capture.get(cv2.CAP_PROP_FPS)  # 0 where unknown
    is_rate = fps == 0 or abs(fps - wanted.fps) <= 1  # 29.97 counts as 30
    if (width, height) == (wanted.width, wanted.height) and is_rate:
        return []
    return [
        f"{name} delivers {width} x {height} pixels at {fps:g} frames/s, the profile asks for "
        f"{wanted.width} x {wanted.height} at {wanted.fps:g}"
    ]


def camera_numbers() -> list[int]:
    """Numbers of the /dev/video* devices; not all of them deliver pictures."""
    names = [path.name.removeprefix("video") for path in Path("/dev").glob("video*")]
    return sorted(int(name) for name in names if name.isdecimal())


def can_open_camera(number: int) -> bool:
    """Whether the camera opens; prints nothing and closes it again."""
    capture, _ = _open_quietly(number)
    is_open = capture.isOpened()
    capture.release()
    return is_open


def _open_quietly(*arguments: Any) -> tuple[cv2.VideoCapture, str]:
    """The capture, open or not, and FFmpeg's reason as ` (reason)`, or an empty string.

    OpenCV tries one backend after the other and each prints its failure, which buries our message.
    FFmpeg's output can only be silenced by an environment variable, which is for the command line
    to set, and the calls that silence OpenCV's output differ between 4.8 and 5.0.
    """
    with captured_stderr() as captured:
        capture = cv2.VideoCapture(*arguments)
    reasons = re.findall(r"^\[[^\]]+ @ 0x[0-9a-f]+\] (.+)$", captured.text, re.MULTILINE)
    return capture, f" ({reasons[-1].strip()})" if reasons else ""
