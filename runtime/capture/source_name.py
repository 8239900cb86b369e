"""What a source's name means: a camera, files, an address, a pipeline or the test pattern.

Each meaning is a frozen type that knows its `name` in messages, without credentials; those of live
sources have the `advice` for a source that delivers no more.
"""

import glob
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote_to_bytes

from mod_edge.errors import SourceError
from mod_edge.runtime.capture.redaction import without_credentials

MAX_CAMERA = 255  # Linux numbers its video devices from 0 to 255
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
CAMERA_FOLDERS = ("/dev/video", "/dev/v4l/")  # what paths of cameras begin with
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class VideoPath:
    """A video file on this machine."""

    path: Path

    @property
    def name(self) -> str:
        """As messages name it."""
        return str(self.path)


@dataclass(frozen=True)
class ImagePaths:
    """Images on this machine: a folder, one image, or a glob such as `frames/*.png`."""

    pattern: Path

    @property
    def name(self) -> str:
        """As messages name it."""
        return str(self.pattern)


@dataclass(frozen=True)
class CameraDevice:
    """A camera that Linux lists as a video device, by its number or a path of the device."""

    device: int | Path

    advice = "check its cable and power, and that no other program took it, then run again"

    @property
    def name(self) -> str:
        """As messages name it."""
        return f"camera {self.device}"


@dataclass(frozen=True)
class CsiCamera:
    """A camera at a Jetson's CSI connector, read through the image signal processor."""

    sensor: int

    advice = (
        "check its ribbon cable, restart the camera service with "
        "sudo systemctl restart nvargus-daemon, then run again"
    )

    @property
    def name(self) -> str:
        """As messages name it."""
        return f"CSI camera {self.sensor}"


@dataclass(frozen=True)
class StreamAddress:
    """A stream or a recording at an address.

    Attributes:
        url: as FFmpeg reads it.
        is_udp: whether an RTSP server is asked for UDP instead of TCP.
    """

    url: str
    is_udp: bool = False

    advice = "check its server, then run again; if it is a recording, download it first"

    @property
    def name(self) -> str:
        """As messages name it."""
        return without_credentials(self.url)


@dataclass(frozen=True)
class Pipeline:
    """A GStreamer pipeline that ends in an appsink."""

    text: str

    name = "the GStreamer pipeline"  # the text may hold a password anywhere
    advice = "try it with gst-launch-1.0, then run again"


@dataclass(frozen=True)
class TestPattern:
    """Moving pictures with their number, made here in real time: a camera for trying things out."""

    __test__ = False  # for pytest

    name = "test://"
    advice = "this is a fault of mod-edge"


LiveName: TypeAlias = CameraDevice | CsiCamera | StreamAddress | Pipeline | TestPattern
SourceName: TypeAlias = VideoPath | ImagePaths | LiveName


def source_name(source: "int | str | Path | SourceName") -> SourceName:
    """What a source means that is a camera's number, a path, a text for `parse_source` or parsed.

    Raises:
        SourceError: see `parse_source`.
    """
    if isinstance(source, int):
        return _camera_numbered(str(source))
    if isinstance(source, Path):
        return _named_by_path(source)
    return parse_source(source) if isinstance(source, str) else source


def live_name(source: int | str | LiveName) -> LiveName:
    """What a live source means; see `source_name`.

    Raises:
        SourceError: also for a video file and for images.
    """
    named = source_name(source)
    if isinstance(named, VideoPath | ImagePaths):
        raise SourceError(
            f"{named.name} is not a live source; open_source opens files and images too"
        )
    return named


def parse_source(text: str) -> SourceName:
    """What `text` names; the first row that fits decides. `./0` names a file called 0.

    | text | means |
    | --- | --- |
    | digits only | the camera with this number |
    | has `!` and `appsink` | a GStreamer pipeline, unchanged |
    | `file://` | a path on this machine; %20 and the like are decoded |
    | `csi://0` | the CSI camera with this number, on a Jetson |
    | `test://` | the test pattern |
    | `rtspu://` | an RTSP stream over UDP; `rtsp://` is over TCP |
    | `scheme://` | an address, without blanks around it, its scheme in lower case |
    | a character device, or a path in /dev of a camera | a camera |
    | a folder, or the name of an image | images |
    | has `*`, `?` or `[`, and no such file exists | the images that match |
    | anything else | a video file, its path unchanged |

    Raises:
        SourceError: the text is blank, a camera's number is out of range, or file:// does not name
            a file on this machine.
    """
    if not text.strip():
        raise SourceError("the source has no name; give a video file, an address or a number")
    if re.fullmatch(r"[0-9]+", text):
        return _camera_numbered(text)
    if is_pipeline(text):
        return Pipeline(text)
    scheme = SCHEME.match(text.strip())
    if scheme is None:
        return _named_by_path(Path(text))
    return _named_by_address(scheme[0].lower(), text.strip()[scheme.end() :])


def stream_names(sources: Sequence[SourceName]) -> list[str]:
    """A name for the stream of each source: the source's, with a number where two are the same."""
    names = [source.name for source in sources]
    chosen: list[str] = []
    for name in names:
        numbered = (f"{name} ({number})" for number in itertools.count(1))
        free = (each for each in numbered if each not in names and each not in chosen)
        chosen.append(name if names.count(name) == 1 else next(free))
    return chosen


def is_pipeline(text: str) -> bool:
    """Whether the text is a GStreamer pipeline that ends in an appsink."""
    return "!" in text and "appsink" in text


def _camera_numbered(digits: str) -> CameraDevice:
    if len(digits) > len(str(MAX_CAMERA)) or not 0 <= int(digits) <= MAX_CAMERA:
        raise SourceError(
            f"camera {digits} is outside 0..{MAX_CAMERA}, the numbers of Linux's video devices; "
            f"a file of that name is ./{digits}"
        )
    return CameraDevice(int(digits))


def _named_by_address(scheme: str, rest: str) -> SourceName:
    if scheme == "file://":
        return _named_by_path(_local_path(rest))
    if scheme == "csi://":
        if not re.fullmatch(r"[0-9]{1,2}", rest):
            raise SourceError(f"csi://{rest} is not a CSI camera; wanted its number, as in csi://0")
        return CsiCamera(int(rest))
    if scheme == "test://":
        if rest:
            raise SourceError(
                f"test://{rest}: wanted test:// alone; size and rate are those of the profile's "
                "[camera] section"
            )
        return TestPattern()
    if scheme == "rtspu://":
        return StreamAddress(f"rtsp://{rest}", is_udp=True)
    return StreamAddress(scheme + rest)


def _local_path(rest: str) -> Path:
    """The path at file://`rest`."""
    machine, _, path = rest.partition("/")
    decoded = os.fsdecode(unquote_to_bytes(os.fsencode(path)))
    if machine.lower() not in ("", "localhost") or "\0" in decoded:
        raise SourceError(
            f"file://{rest} does not name a file on this machine; wanted three slashes and an "
            "absolute path (file:///home/me/clip.mp4), or the path alone"
        )
    return Path("/", decoded)


def _named_by_path(path: Path) -> SourceName:
    """A camera, images or a video, by what is at the path, or by its name if nothing is there."""
    try:
        is_device, is_folder, exists = path.is_char_device(), path.is_dir(), path.exists()
    except (OSError, ValueError):  # too long, or holds a null: opening it gives the error
        return VideoPath(path)
    if is_device or (not exists and str(path).startswith(CAMERA_FOLDERS)):
        numbered = re.fullmatch(r"/dev/video([0-9]+)", str(path))
        return _camera_numbered(numbered[1]) if numbered else CameraDevice(path)
    is_image = path.suffix.lower() in IMAGE_SUFFIXES
    if is_folder or is_image or (not exists and glob.has_magic(str(path))):
        return ImagePaths(path)
    return VideoPath(path)
