"""Cameras and pipelines, on a fake device."""

import os
import re
from typing import ClassVar

import cv2
import numpy as np
import pytest

from mod_edge.errors import SourceError
from mod_edge.profiles import Camera
from mod_edge.runtime.capture.csi_pipeline import csi_pipeline
from mod_edge.runtime.capture.live_capture import LiveCapture
from mod_edge.runtime.capture.open_live import FFMPEG_VARIABLE, open_live
from mod_edge.runtime.capture.open_source import open_source
from mod_edge.runtime.capture.source_name import is_pipeline, parse_source

PIPELINE = "nvarguscamerasrc ! nvvidconv ! video/x-raw, format=BGRx ! videoconvert ! appsink"


class FakeCamera:
    """A camera with some sizes and rates, which uses those nearest to the requested ones."""

    sizes = ((320, 240), (640, 480), (1280, 720))
    rates = (10.0, 30.0)
    formats = ("YUYV", "MJPG")
    opens_with = (cv2.CAP_V4L2,)
    opened: ClassVar[list]  # the arguments of each opening; set by the fixture

    def __init__(self, source, backend=cv2.CAP_ANY, parameters=()):
        self.opened.append((source, backend, tuple(parameters)))
        self.is_open = backend in self.opens_with
        self.values = {cv2.CAP_PROP_FRAME_WIDTH: 1280, cv2.CAP_PROP_FRAME_HEIGHT: 720}
        self.values[cv2.CAP_PROP_FPS] = 10.0
        self.values[cv2.CAP_PROP_FOURCC] = cv2.VideoWriter.fourcc(*"YUYV")

    def isOpened(self):  # noqa: N802 - OpenCV's name
        return self.is_open

    def set(self, key, value):
        known = {
            cv2.CAP_PROP_FRAME_WIDTH: [width for width, _ in self.sizes],
            cv2.CAP_PROP_FRAME_HEIGHT: [height for _, height in self.sizes],
            cv2.CAP_PROP_FPS: self.rates,
            cv2.CAP_PROP_FOURCC: [cv2.VideoWriter.fourcc(*letters) for letters in self.formats],
        }[key]
        self.values[key] = min(known, key=lambda one: abs(one - value))
        return value in known

    def get(self, key):
        return self.values[key]

    def grab(self):
        return True

    def retrieve(self):
        shape = (self.values[cv2.CAP_PROP_FRAME_HEIGHT], self.values[cv2.CAP_PROP_FRAME_WIDTH], 3)
        return True, np.zeros(shape, np.uint8)

    def release(self):
        self.is_open = False


@pytest.fixture
def camera(monkeypatch):
    """The class of the camera that OpenCV opens; a test may change it."""

    class Changed(FakeCamera):
        opened: ClassVar[list] = []

    monkeypatch.setattr(cv2, "VideoCapture", Changed)
    monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda backend: True)
    return Changed


@pytest.mark.usefixtures("camera")
def test_a_camera_with_the_requested_size_gives_no_warning():
    with open_source(0, fps=2, wanted=Camera(640, 480, 30)) as live:
        assert next(live).image.shape == (480, 640, 3)
        assert live.warnings == []


@pytest.mark.usefixtures("camera")
def test_a_camera_without_a_requested_size_keeps_its_own():
    with LiveCapture(0, fps=2) as live:
        assert next(live).image.shape == (720, 1280, 3)
        assert live.warnings == []


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        (Camera(1920, 1080, 30), "1280 x 720 pixels at 30 frames/s, YUYV"),
        (Camera(640, 480, 60), "640 x 480 pixels at 30 frames/s, YUYV"),
    ],
)
@pytest.mark.usefixtures("camera")
def test_a_camera_with_another_size_or_rate_is_used_with_one_warning(wanted, given):
    with LiveCapture(3, fps=2, wanted=wanted) as live:
        next(live)
        (warning,) = live.warnings
    assert warning == (
        f"camera 3 delivers {given}, the profile asks for "
        f"{wanted.width} x {wanted.height} at {wanted.fps}"
    )


@pytest.mark.usefixtures("camera")
def test_a_camera_is_asked_for_the_pixel_format_and_another_one_is_a_warning():
    with LiveCapture(0, fps=2, wanted=Camera(640, 480, 30, "MJPG")) as live:
        assert live.warnings == []
    with LiveCapture(0, fps=2, wanted=Camera(640, 480, 30, "NV12")) as live:
        (warning,) = live.warnings
    assert ", the profile asks for 640 x 480 at 30, NV12" in warning


@pytest.mark.parametrize("fps", [0.0, 29.97])
def test_an_unknown_or_rounded_rate_gives_no_warning(camera, fps):
    camera.rates = (fps,)
    with LiveCapture(0, fps=2, wanted=Camera(640, 480, 30)) as live:
        assert live.warnings == []


def test_cameras_are_opened_with_v4l2_or_else_with_any_backend(camera):
    with LiveCapture(0, fps=2):
        assert camera.opened == [(0, cv2.CAP_V4L2, ())]
    camera.opens_with = (cv2.CAP_ANY,)
    with LiveCapture(1, fps=2):
        assert camera.opened[1:] == [(1, cv2.CAP_V4L2, ()), (1, cv2.CAP_ANY, ())]


def test_a_pipeline_is_passed_to_gstreamer_unchanged_and_keeps_its_size(camera):
    camera.opens_with = (cv2.CAP_GSTREAMER,)
    with open_source(PIPELINE, fps=2, wanted=Camera(640, 480, 30)) as live:
        assert next(live).image.shape == (720, 1280, 3)
        assert live.is_live
    assert camera.opened == [(PIPELINE, cv2.CAP_GSTREAMER, ())]


@pytest.mark.parametrize("given", [None, "rtsp_transport;tcp|multiple_requests;1"])
def test_only_an_rtspu_address_is_opened_over_udp(camera, monkeypatch, given):
    seen = []

    class Noting(camera):
        opens_with = (cv2.CAP_ANY,)

        def __init__(self, *arguments):
            seen.append((arguments[0], os.environ.get(FFMPEG_VARIABLE)))
            super().__init__(*arguments)

    monkeypatch.setattr(cv2, "VideoCapture", Noting)
    monkeypatch.delenv(FFMPEG_VARIABLE, raising=False)
    if given:
        monkeypatch.setenv(FFMPEG_VARIABLE, given)
    for address in ("rtspu://camera/1", "rtsp://camera/1"):
        open_live(parse_source(address), read_timeout_s=1.0)
    udp = "multiple_requests;1|rtsp_transport;udp" if given else "rtsp_transport;udp"
    assert seen == [("rtsp://camera/1", udp), ("rtsp://camera/1", given)]
    assert os.environ.get(FFMPEG_VARIABLE) == given


def test_the_reason_of_a_failed_opening_has_no_credentials(camera, monkeypatch):
    class Failing(camera):
        def __init__(self, *arguments):
            os.write(2, b"[hls @ 0x5a] no segment http://me:secret@cam/1.ts?token=abc\n")
            super().__init__(*arguments)

    monkeypatch.setattr(cv2, "VideoCapture", Failing)
    with pytest.raises(
        SourceError, match=r"\(no segment http://\*\*\*@cam/1\.ts\?token=\*"
    ) as error:
        open_source("http://me:secret@cam/live.m3u8?token=abc", fps=2)
    assert not {"secret", "abc"} & set(re.findall(r"\w+", str(error.value)))


def test_a_csi_camera_is_a_pipeline_of_the_profiles_size(camera):
    camera.opens_with = (cv2.CAP_GSTREAMER,)
    with open_source("csi://0", fps=2, wanted=Camera(640, 480, 30)):
        ((pipeline, backend, _),) = camera.opened
    assert backend == cv2.CAP_GSTREAMER
    assert pipeline == csi_pipeline(0, Camera(640, 480, 30))
    assert is_pipeline(pipeline)


def test_without_gstreamer_a_csi_camera_says_how_to_use_the_systems_opencv(camera, monkeypatch):
    monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda _: False)
    with pytest.raises(
        SourceError, match=r"CSI camera 0 .*without GStreamer.*system-site-packages"
    ):
        open_source("csi://0", fps=2)
    assert camera.opened == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (PIPELINE, True),
        ("rtspsrc location=rtsp://me:secret@camera/1 ! rtph264depay ! appsink drop=true", True),
        ("rtsp://camera/1", False),
        ("wow!.mp4", False),
    ],
)
def test_a_pipeline_ends_in_an_appsink(source, expected):
    assert is_pipeline(source) is expected


def test_a_pipeline_that_does_not_open_is_an_error_without_the_password():
    # uses the real OpenCV: PyPI's has no GStreamer, others do not have this element
    source = "nosuchsrc location=rtsp://me:secret@camera/1 ! appsink"
    says = r"the GStreamer pipeline cannot be opened.*(gst-launch-1\.0|built without GStreamer)"
    with pytest.raises(SourceError, match=says) as caught:
        LiveCapture(source, fps=2)
    assert "secret" not in str(caught.value)
