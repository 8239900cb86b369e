"""What is known of cameras without opening them, and their list, on folders like Linux's."""

from pathlib import Path

import pytest

from mod_edge.errors import SourceError
from mod_edge.profiles import Camera
from mod_edge.runtime.capture import camera_list, video_devices
from mod_edge.runtime.capture.camera_list import list_cameras
from mod_edge.runtime.capture.csi_pipeline import csi_pipeline
from mod_edge.runtime.capture.source_name import CsiCamera
from mod_edge.runtime.capture.video_devices import PictureFormat, device_of, lasting_path_of

GIVEN = PictureFormat(640, 480, 30.0, "MJPG")


@pytest.fixture
def devices(tmp_path, monkeypatch):
    """A camera at 0 with its metadata at 10, by its serial number, and a CSI sensor at 2."""
    dev, sys = tmp_path / "dev", tmp_path / "sys"
    (dev / "v4l" / "by-id").mkdir(parents=True)
    (dev / "v4l" / "by-path").mkdir()
    for number, name in ((0, "HD Webcam"), (2, "vi-output, imx219 9-0010"), (10, "HD Webcam")):
        (dev / f"video{number}").touch()
        (sys / f"video{number}").mkdir(parents=True)
        (sys / f"video{number}" / "name").write_text(f"{name}\n")
    (dev / "video-dec0").touch()  # not numbered: a decoder
    (dev / "v4l" / "by-id" / "usb-HD_123-index0").symlink_to("../../video0")
    (dev / "v4l" / "by-path" / "pci-usb-0-index1").symlink_to("../../video10")
    monkeypatch.setattr(video_devices, "DEVICES", dev)
    monkeypatch.setattr(video_devices, "DRIVERS", sys)
    return dev


class Opened:
    """An open camera."""

    def __init__(self):
        self.is_released = False

    def release(self):
        self.is_released = True


def test_cameras_are_listed_with_name_lasting_path_and_what_they_give(devices, monkeypatch):
    opened = []

    def open_camera(source, wanted):
        assert wanted == Camera(pixel_format="MJPG")
        if isinstance(source, CsiCamera):
            raise SourceError("CSI camera 0 cannot be opened: no GStreamer")
        opened.append(Opened())
        return opened[-1], []

    monkeypatch.setattr(camera_list, "open_camera", open_camera)
    monkeypatch.setattr(camera_list, "format_of", lambda _: GIVEN)
    webcam, sensor, metadata = list_cameras(Camera(pixel_format="MJPG"))
    assert (webcam.source, webcam.path, webcam.model) == ("0", "/dev/video0", "HD Webcam")
    assert webcam.lasting_path == str(devices / "v4l" / "by-id" / "usb-HD_123-index0")
    assert (webcam.opens, webcam.reason, webcam.format) == (True, "", GIVEN)
    assert (sensor.source, sensor.lasting_path, sensor.opens) == ("csi://0", None, False)
    assert sensor.reason == "CSI camera 0 cannot be opened: no GStreamer"
    assert metadata.lasting_path == str(devices / "v4l" / "by-path" / "pci-usb-0-index1")
    assert [each.is_released for each in opened] == [True, True]


def test_a_lasting_path_is_opened_as_the_device_it_leads_to(devices):
    assert device_of(devices / "v4l" / "by-id" / "usb-HD_123-index0") == 0
    assert device_of(Path("/dev/front-camera")) == "/dev/front-camera"
    assert lasting_path_of(2) is None


def test_a_format_is_named_with_what_is_known():
    assert str(GIVEN) == "640 x 480 pixels at 30 frames/s, MJPG"
    assert str(PictureFormat(640, 480, 0.0, "")) == "640 x 480 pixels at an unknown rate"


@pytest.mark.parametrize(
    ("fps", "rate"), [(30.0, "30/1"), (30000 / 1001, "30000/1001"), (7.5, "15/2")]
)
def test_a_csi_pipeline_has_the_wanted_size_and_rate(fps, rate):
    pipeline = csi_pipeline(1, Camera(1280, 720, fps))
    assert pipeline.startswith("nvarguscamerasrc sensor-id=1 ! ")
    assert f"width=1280,height=720,framerate={rate} !" in pipeline
    assert pipeline.endswith("appsink drop=true max-buffers=1")
