"""The video devices that Linux lists, and the picture formats that they are asked for and give."""

import re
from dataclasses import dataclass
from pathlib import Path

import cv2

from mod_edge.profiles import Camera
from mod_edge.runtime.capture.opencv import codec_of

DEVICES = Path("/dev")
DRIVERS = Path("/sys/class/video4linux")


@dataclass(frozen=True)
class PictureFormat:
    """What a camera delivers: pixels, frames per second (0 if unknown), and V4L2's four letters."""

    width: int
    height: int
    fps: float
    pixel_format: str

    def __str__(self) -> str:
        rate = f"{self.fps:g} frames/s" if self.fps else "an unknown rate"
        letters = f", {self.pixel_format}" if self.pixel_format else ""
        return f"{self.width} x {self.height} pixels at {rate}{letters}"


def device_numbers() -> list[int]:
    """Numbers of the /dev/video* devices; not all of them deliver pictures."""
    names = [path.name.removeprefix("video") for path in DEVICES.glob("video*")]
    return sorted(int(name) for name in names if name.isdecimal())


def device_of(device: int | Path) -> int | str:
    """The device for OpenCV: its number, also where a path such as /dev/v4l/by-id/... leads to."""
    if isinstance(device, int):
        return device
    numbered = re.fullmatch(r"video([0-9]+)", device.resolve().name)
    return int(numbered[1]) if numbered else str(device)


def model_of(number: int) -> str:
    """The camera's name according to its driver; empty if it is not listed."""
    try:
        return (DRIVERS / f"video{number}" / "name").read_text(errors="replace").strip()
    except OSError:
        return ""


def lasting_path_of(number: int) -> Path | None:
    """A path of the device that stays the same when it is plugged in again; None if there is none.

    By the camera's serial number if it has one, otherwise by its connector.
    """
    device = DEVICES / f"video{number}"
    for folder in ("by-id", "by-path"):
        for path in sorted((DEVICES / "v4l" / folder).glob("*")):
            if path.resolve() == device.resolve():
                return path
    return None


def request_format(capture: cv2.VideoCapture, name: str, wanted: Camera) -> list[str]:
    """Request a picture format; returns a warning if the camera `name` uses another."""
    if wanted.pixel_format:  # first: it decides which sizes and rates there are
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*wanted.pixel_format))
    capture.set(cv2.CAP_PROP_FRAME_WIDTH, wanted.width)
    capture.set(cv2.CAP_PROP_FRAME_HEIGHT, wanted.height)
    capture.set(cv2.CAP_PROP_FPS, wanted.fps)
    given = format_of(capture)
    is_rate = given.fps == 0 or abs(given.fps - wanted.fps) <= 1  # 29.97 counts as 30
    is_letters = wanted.pixel_format in ("", given.pixel_format)
    if (given.width, given.height) == (wanted.width, wanted.height) and is_rate and is_letters:
        return []
    letters = f", {wanted.pixel_format}" if wanted.pixel_format else ""
    return [
        f"{name} delivers {given}, the profile asks for "
        f"{wanted.width} x {wanted.height} at {wanted.fps:g}{letters}"
    ]


def format_of(capture: cv2.VideoCapture) -> PictureFormat:
    """The format that an open camera delivers."""
    return PictureFormat(
        round(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
        round(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        capture.get(cv2.CAP_PROP_FPS),
        codec_of(capture),
    )
