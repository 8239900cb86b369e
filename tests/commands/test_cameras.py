"""`mod-edge cameras`."""

import json
import re

import pytest

from mod_edge.runtime.capture import camera_list
from mod_edge.runtime.capture.camera_list import ListedCamera
from mod_edge.runtime.capture.video_devices import PictureFormat
from tests.commands.mod_edge_command import succeeds

WEBCAM = "/dev/v4l/by-id/usb-HD_123-index0"
BUSY = "CSI camera 0 cannot be opened: this OpenCV was built without GStreamer"
CAMERAS = (
    ListedCamera(
        *(0, "0", "/dev/video0", WEBCAM, "HD\x1b[31mWebcam", True, ""),
        PictureFormat(640, 480, 30.0, "YUYV"),
    ),
    ListedCamera(1, "1", "/dev/video1", None, "HD\x1b[31mWebcam", False, "no pictures", None),
    ListedCamera(2, "csi://0", "/dev/video2", None, "vi-output, imx219", False, BUSY, None),
)


@pytest.fixture
def found(monkeypatch):
    """Sets the cameras that are found."""
    return lambda cameras: monkeypatch.setattr(camera_list, "list_cameras", lambda _: cameras)


def test_cameras_are_a_table_with_what_source_takes_and_why_one_does_not_open(found):
    found(CAMERAS)
    header, webcam, metadata, sensor, reason = succeeds("cameras").stdout.splitlines()
    assert re.split(" {2,}", header)[:3] == ["source", "device", "camera"]
    assert re.split(" {2,}", webcam) == [
        *("0", "/dev/video0", "HD [31mWebcam"),
        *("640 x 480 pixels at 30 frames/s, YUYV", WEBCAM),
    ]
    assert "does not open" in metadata
    assert sensor.startswith("csi://0")
    assert reason == f"/dev/video2: {BUSY}"  # the second device of an open camera needs no reason


def test_cameras_as_json_have_all_that_is_known(found):
    found(CAMERAS)
    webcam, _, sensor = json.loads(succeeds("cameras", "--json").stdout)["cameras"]
    assert webcam["format"] == {"width": 640, "height": 480, "fps": 30.0, "pixel_format": "YUYV"}
    assert webcam["lasting_path"] == WEBCAM
    assert (sensor["source"], sensor["opens"], sensor["reason"]) == ("csi://0", False, BUSY)


def test_without_a_camera_it_says_what_to_check(found):
    found(())
    text = succeeds("cameras").stdout
    assert "no camera found (no /dev/video*)" in text
    assert "test://" in text
    assert json.loads(succeeds("cameras", "--json").stdout) == {"cameras": []}
