"""The cameras of this machine, each opened briefly as a run would open it."""

from dataclasses import dataclass
from pathlib import Path

from mod_edge.errors import SourceError
from mod_edge.profiles import Camera
from mod_edge.runtime.capture.open_live import open_camera
from mod_edge.runtime.capture.source_name import CameraDevice, CsiCamera
from mod_edge.runtime.capture.video_devices import (
    PictureFormat,
    device_numbers,
    format_of,
    lasting_path_of,
    model_of,
)

CSI_DRIVER = "vi-output"  # how the names of a Jetson's CSI sensors begin; as devices they are raw


@dataclass(frozen=True)
class ListedCamera:
    """A camera of this machine.

    Attributes:
        number: of the device /dev/video<number>.
        source: what `--source` takes: the number, or csi://0 on a Jetson.
        path: of the device.
        lasting_path: a path under /dev/v4l that stays the same when the camera is plugged in again;
            None if it has none.
        model: the camera's name according to its driver; empty if it is not known.
        opens: whether it delivers pictures; many cameras list a second device for metadata only.
        reason: why it does not open; empty if it does.
        format: what it delivers when asked for the wanted format; None if it does not open.
    """

    number: int
    source: str
    path: str
    lasting_path: str | None
    model: str
    opens: bool
    reason: str
    format: PictureFormat | None


def list_cameras(wanted: Camera) -> tuple[ListedCamera, ...]:
    """The cameras in the order of their numbers; prints nothing."""
    cameras: list[ListedCamera] = []
    num_sensors = 0
    for number in device_numbers():
        is_sensor = model_of(number).startswith(CSI_DRIVER)
        source = CsiCamera(num_sensors) if is_sensor else CameraDevice(number)
        num_sensors += is_sensor
        cameras.append(_listed(number, source, wanted))
    return tuple(cameras)


def _listed(number: int, source: CameraDevice | CsiCamera, wanted: Camera) -> ListedCamera:
    lasting_path = lasting_path_of(number)
    given, reason = _format_of(source, wanted)
    return ListedCamera(
        number=number,
        source=f"csi://{source.sensor}" if isinstance(source, CsiCamera) else str(number),
        path=str(Path("/dev", f"video{number}")),
        lasting_path=None if lasting_path is None else str(lasting_path),
        model=model_of(number),
        opens=given is not None,
        reason=reason,
        format=given,
    )


def _format_of(
    source: CameraDevice | CsiCamera, wanted: Camera
) -> tuple[PictureFormat | None, str]:
    """What the camera delivers, and why it does not open."""
    try:
        capture, _ = open_camera(source, wanted)
    except SourceError as exc:
        return None, str(exc)
    try:
        return format_of(capture), ""
    finally:
        capture.release()
