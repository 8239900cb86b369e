"""Open a live source: a camera, a stream, a pipeline or the test pattern; also again."""

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple, Protocol

import cv2

from mod_edge.errors import SourceError
from mod_edge.native.native_path import is_utf8
from mod_edge.profiles import Camera
from mod_edge.runtime.capture.clock import Clock
from mod_edge.runtime.capture.csi_pipeline import csi_pipeline
from mod_edge.runtime.capture.opencv import open_quietly
from mod_edge.runtime.capture.paced_reader import PacedReader
from mod_edge.runtime.capture.pattern_reader import PatternReader
from mod_edge.runtime.capture.reachability import connection_reason
from mod_edge.runtime.capture.source_name import (
    CameraDevice,
    CsiCamera,
    LiveName,
    Pipeline,
    StreamAddress,
)
from mod_edge.runtime.capture.video_devices import device_numbers, device_of, request_format

OPEN_TIMEOUT_S = 10.0
# OpenCV reads FFmpeg's options here, as name;value|name;value, each time it opens an address.
FFMPEG_VARIABLE = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


Opener = Callable[..., tuple[cv2.VideoCapture, str]]  # as `open_quietly`
_OPENING_OVER_UDP = Lock()  # a process has one environment


class LiveReader(Protocol):
    """What delivers the pictures of a live source, as `cv2.VideoCapture` does."""

    def grab(self) -> bool:
        """Wait for the next picture; whether there is one."""
        ...

    def retrieve(self) -> tuple[bool, Any]:
        """Whether the picture grabbed last can be converted, and the picture, (H, W, 3) uint8 BGR.

        FFmpeg decodes in `grab` and converts the colours here, V4L2 does both here.
        """
        ...

    def get(self, key: int, /) -> float:
        """A property, as OpenCV numbers them; 0 where it is not known."""
        ...

    def release(self) -> None:
        """Close the source."""
        ...


class OpenedLive(NamedTuple):
    """An open live source, and for the user what it delivers other than requested."""

    reader: LiveReader
    warnings: list[str]


def open_live(
    source: LiveName,
    *,
    read_timeout_s: float,
    wanted: Camera | None = None,
    opener: Opener = open_quietly,
    clock: Clock | None = None,
) -> OpenedLive:
    """The source, opened; may be called again for the same source once its reader is released.

    Args:
        source: camera, stream, pipeline or test pattern.
        read_timeout_s: after which grab() returns from a silent stream, also with a picture that
            the decoder held back; devices have their own.
        wanted: picture size, rate and pixel format to request; None keeps those of a camera and
            takes the defaults elsewhere. Streams and pipelines have their own.
        opener: what makes the capture: `open_unredirected` while other streams run.
        clock: that HLS streams and the test pattern are paced with; None is this machine's.

    Raises:
        SourceError: it cannot be opened; the message says what to check.
    """
    if isinstance(source, CameraDevice | CsiCamera):
        return OpenedLive(*open_camera(source, wanted, opener))
    if isinstance(source, StreamAddress):
        capture = open_stream(source, read_timeout_s, opener)
        return OpenedLive(live_reader(source, capture, read_timeout_s, clock), [])
    if isinstance(source, Pipeline):
        return OpenedLive(_open_pipeline(source.text, source, opener), [])
    return OpenedLive(PatternReader(wanted or Camera(), clock or Clock()), [])


def open_camera(
    source: CameraDevice | CsiCamera, wanted: Camera | None, opener: Opener = open_quietly
) -> tuple[cv2.VideoCapture, list[str]]:
    """The camera, opened, and warnings; arguments and errors as for `open_live`."""
    if isinstance(source, CsiCamera):
        text = csi_pipeline(source.sensor, wanted or Camera())
        return _open_pipeline(text, source, opener), []
    capture = _open_device(source, opener)
    return capture, [] if wanted is None else request_format(capture, source.name, wanted)


def open_stream(
    source: StreamAddress, read_timeout_s: float, opener: Opener = open_quietly
) -> cv2.VideoCapture:
    """The stream or recording at an address, opened; arguments and errors as for `open_live`."""
    if not is_utf8(source.url):  # OpenCV crashes the process at it
        raise SourceError(
            f"{source.name} has bytes that are not UTF-8; write them as %XX, as in %E9"
        )
    limits = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        round(OPEN_TIMEOUT_S * 1000),
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,  # FFmpeg's default of 30 s would delay close()
        math.ceil(read_timeout_s * 1000),
    ]
    transport = _rtsp_over_udp() if source.is_udp else _not_beside_udp()
    capture, reason = opener(source.url, cv2.CAP_ANY, limits, within=transport)
    if not capture.isOpened():
        raise SourceError(
            f"{source.name} cannot be opened{reason or connection_reason(source.url)}; check the "
            "address, user and password, and that the server answers from here"
        )
    return capture


def live_reader(
    source: StreamAddress,
    capture: cv2.VideoCapture,
    read_timeout_s: float,
    clock: Clock | None = None,
) -> LiveReader:
    """What reads a live stream from its open capture: at the stream's own pace if it is HLS."""
    is_playlist = re.search(r"\.m3u8?($|[?#])", source.url, re.IGNORECASE)
    return PacedReader(capture, read_timeout_s, clock or Clock()) if is_playlist else capture


def is_recording(capture: LiveReader) -> bool:
    """Whether an opened address has an end: its length is known, so it is not live.

    The header of most files has it, the playlist of a complete HLS video, the description of an
    RTSP recording. Where the length is unknown, OpenCV gives a large negative number of frames.
    """
    return capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0


def _open_device(source: CameraDevice, opener: Opener) -> cv2.VideoCapture:
    device = device_of(source.device)
    # V4L2 first: OpenCV would prefer GStreamer, which does not change the picture size.
    capture, reason = opener(device, cv2.CAP_V4L2)
    if not capture.isOpened():
        capture, reason = opener(device)
    if not capture.isOpened():
        devices = ", ".join(f"/dev/video{number}" for number in device_numbers())
        raise SourceError(
            f"{source.name} cannot be opened{reason}; this machine has "
            f"{devices or 'no /dev/video*'}; check the number (mod-edge cameras lists them), that "
            "no other program uses the camera, that you are in the group video, and in a container "
            "that the device was passed in"
        )
    return capture


def _open_pipeline(text: str, source: Pipeline | CsiCamera, opener: Opener) -> cv2.VideoCapture:
    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        raise SourceError(
            f"{source.name} cannot be opened: OpenCV {cv2.__version__} of this Python was built "
            "without GStreamer, as PyPI's is; use the system's OpenCV, which reads GStreamer on "
            "JetPack: python3 -m venv --system-site-packages .venv, without opencv-python in it "
            "(pip uninstall opencv-python)"
        )
    if not is_utf8(text):
        raise SourceError(f"{source.name} has bytes that are not UTF-8; rename what it reads")
    capture, reason = opener(text, cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        raise SourceError(f"{source.name} cannot be opened{reason}; {source.advice}")
    return capture


@contextmanager
def _rtsp_over_udp() -> Iterator[None]:
    """Let FFmpeg ask RTSP servers for UDP; there is no other way to tell it."""
    with _OPENING_OVER_UDP:
        given = os.environ.get(FFMPEG_VARIABLE)
        others = [each for each in (given or "").split("|") if each and "rtsp_" not in each]
        os.environ[FFMPEG_VARIABLE] = "|".join([*others, "rtsp_transport;udp"])
        try:
            yield
        finally:
            if given is None:
                del os.environ[FFMPEG_VARIABLE]
            else:
                os.environ[FFMPEG_VARIABLE] = given


@contextmanager
def _not_beside_udp() -> Iterator[None]:
    """Begin when no stream is being opened over UDP, or this one would be too.

    One whose opening over UDP begins within the same milliseconds is not seen: waiting for each
    other to the end would let a server that does not answer hold up all cameras.
    """
    with _OPENING_OVER_UDP:
        pass
    yield
