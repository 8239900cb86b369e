"""`mod-edge cameras`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from mod_edge.commands.arguments import JsonOption
from mod_edge.commands.console import out, print_json, print_table, printable, reports_errors
from mod_edge.native.package_faults import quiet_imports
from mod_edge.profiles import Camera

if TYPE_CHECKING:
    from mod_edge.runtime.capture.camera_list import ListedCamera

HEADER = ("source", "device", "camera", "delivers", "path that stays the same")
NONE_FOUND = (
    "no camera found (no /dev/video*). Check the cable; dmesg names a camera that is plugged in. "
    "In a container, pass the device in: --device /dev/video0. --source test:// needs no camera."
)


@reports_errors
def cameras(json: JsonOption = False) -> None:
    """List the cameras and what each delivers; opens each briefly."""
    with quiet_imports():
        from mod_edge.runtime.capture.camera_list import list_cameras

    found = list_cameras(Camera())
    if json:
        print_json({"cameras": [asdict(camera) for camera in found]})
    elif found:
        print_cameras(found)
    else:
        out.print(NONE_FOUND)


def print_cameras(found: "Sequence[ListedCamera]") -> None:
    """Print one row per camera, then why cameras do not open."""
    rows = [
        (
            camera.source,
            camera.path,
            printable(camera.model) or "-",
            str(camera.format) if camera.format else "does not open",
            printable(camera.lasting_path or "-"),
        )
        for camera in found
    ]
    print_table(HEADER, rows, left=range(len(HEADER)))
    for camera in _closed(found):
        out.print(f"{camera.path}: {printable(camera.reason)}")


def _closed(found: "Sequence[ListedCamera]") -> "list[ListedCamera]":
    """Cameras that do not open, without the second devices of others, which hold metadata only."""
    open_models = {camera.model for camera in found if camera.opens}
    return [camera for camera in found if not camera.opens and camera.model not in open_models]
