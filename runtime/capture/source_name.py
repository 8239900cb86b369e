"""What a source's name means: a camera's number, a file, an address or a GStreamer pipeline."""

import os
import re
from pathlib import Path
from typing import TypeGuard
from urllib.parse import unquote_to_bytes

from mod_edge.errors import SourceError

MAX_CAMERA = 255  # Linux numbers its video devices from 0 to 255
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# The second kind is a user and a password with a slash, which no port is.
CREDENTIALS = re.compile(r"//(?:[^/]*@|[^/@\[]+:(?![0-9]+/).*@)")


def parse_source(text: str) -> int | Path | str:
    """The camera's number, the file's path, or the address or pipeline, that `text` names.

    The first row that fits decides. `./0` and the like name a file in spite of its name.

    | text | means |
    | --- | --- |
    | digits only | the camera of this number |
    | has `!` and `appsink` | a GStreamer pipeline, unchanged |
    | `file://` | a file on this machine; %20 and the like are decoded |
    | `scheme://` | an address, without blanks around it, its scheme in lower case |
    | anything else | a file's path, unchanged |

    Raises:
        SourceError: the text is blank, the number is beyond 255, or file:// does not name a file
            on this machine.
    """
    if not text.strip():
        raise SourceError("the source has no name; give a video file, an address or a number")
    if re.fullmatch(r"[0-9]+", text):
        return _camera_numbered(text)
    if is_pipeline(text):
        return text
    scheme = SCHEME.match(text.strip())
    if scheme is None:
        return Path(text)
    address = scheme[0].lower() + text.strip()[scheme.end() :]
    return _local_file(address) if scheme[0].lower() == "file://" else address


def is_address(source: int | str) -> TypeGuard[str]:
    """Whether the source is an address (`scheme://...`), not a device or a pipeline."""
    return isinstance(source, str) and SCHEME.match(source) is not None


def is_pipeline(source: int | str) -> TypeGuard[str]:
    """Whether the source is a GStreamer pipeline that ends in an appsink."""
    return isinstance(source, str) and "!" in source and "appsink" in source


def name_of(source: int | str) -> str:
    """The source's name in messages."""
    if isinstance(source, int):
        return f"camera {source}"
    # a pipeline may hold a password anywhere
    return "the GStreamer pipeline" if is_pipeline(source) else without_password(source)


def without_password(address: str) -> str:
    """The address without credentials: rtsp://user:secret@host becomes rtsp://***@host."""
    return CREDENTIALS.sub("//***@", address)


def _camera_numbered(digits: str) -> int:
    if len(digits) > len(str(MAX_CAMERA)) or int(digits) > MAX_CAMERA:
        raise SourceError(
            f"camera {digits} is outside 0..{MAX_CAMERA}, the numbers of Linux's video devices; "
            f"a file of that name is ./{digits}"
        )
    return int(digits)


def _local_file(address: str) -> Path:
    """The file at a file:// address."""
    machine, _, path = address.removeprefix("file://").partition("/")
    decoded = os.fsdecode(unquote_to_bytes(os.fsencode(path)))
    if machine.lower() not in ("", "localhost") or "\0" in decoded:
        raise SourceError(
            f"{address} does not name a file on this machine; wanted three slashes and an "
            "absolute path (file:///home/me/clip.mp4), or the path alone"
        )
    return Path("/", decoded)
