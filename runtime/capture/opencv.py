"""Open a video file with OpenCV, and what OpenCV knows of it; nothing is printed."""

import os
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import cv2

from mod_edge.errors import SourceError
from mod_edge.native.captured_stderr import captured_stderr
from mod_edge.native.native_path import is_utf8
from mod_edge.runtime.capture.redaction import without_credentials
from mod_edge.runtime.capture.source import Image

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
        capture, reason = open_quietly(os.path.join(os.curdir, path))
    else:
        with path.open("rb") as file:  # OpenCV crashes the process at such a name
            capture, reason = open_quietly(f"/dev/fd/{file.fileno()}")
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
    """The four letters of a video's codec or a camera's pixel format, such as avc1 or MJPG.

    Empty where the backend gives none.
    """
    code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    return code.to_bytes(4, "little").decode("latin-1").strip("\0 ")


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


def open_quietly(
    *arguments: Any, within: AbstractContextManager[None] | None = None
) -> tuple[cv2.VideoCapture, str]:
    """The capture, open or not, and FFmpeg's reason as ` (reason)`, or an empty string.

    OpenCV tries one backend after the other and each prints its failure, which buries our message.
    FFmpeg's output can only be silenced by an environment variable, which is for the command line
    to set, and the calls that silence OpenCV's output differ between 4.8 and 5.0.

    Args:
        arguments: of `cv2.VideoCapture`.
        within: entered for the opening.
    """
    with captured_stderr() as captured, within or nullcontext():
        capture = cv2.VideoCapture(*arguments)
    reasons = re.findall(r"^\[[^\]]+ @ 0x[0-9a-f]+\] (.+)$", captured.text, re.MULTILINE)
    return capture, f" ({without_credentials(reasons[-1].strip())})" if reasons else ""


def open_unredirected(
    *arguments: Any, within: AbstractContextManager[None] | None = None
) -> tuple[cv2.VideoCapture, str]:
    """As `open_quietly`, but standard error stays as it is, and FFmpeg's reason is not known.

    For openings while a stream runs: what other threads print meanwhile must not be lost, and other
    sources must not wait.
    """
    with within or nullcontext():
        return cv2.VideoCapture(*arguments), ""
