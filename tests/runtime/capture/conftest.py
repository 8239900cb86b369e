"""Fixtures of live sources."""

import cv2
import pytest

from tests.runtime.capture.scripted_camera import FakeClock, ScriptedCamera


@pytest.fixture
def camera(monkeypatch):
    """The stand-in that OpenCV opens, whatever the source's name."""
    scripted = ScriptedCamera()
    monkeypatch.setattr(cv2, "VideoCapture", scripted.open)
    monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda _: True)
    yield scripted
    scripted.close()


@pytest.fixture
def clock():
    """A clock whose waits pass at once."""
    return FakeClock()
