"""Fixtures of live sources."""

import threading
import time

import cv2
import pytest

from tests.runtime.capture.scripted_camera import ScriptedCamera


@pytest.fixture
def camera(monkeypatch):
    """The stand-in that OpenCV opens, whatever the source's name."""
    scripted = ScriptedCamera()
    monkeypatch.setattr(cv2, "VideoCapture", scripted.open)
    monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda _: True)
    yield scripted
    scripted.close()


@pytest.fixture
def clock(monkeypatch):
    """`now_s[0]` is the time; waiting for a picture advances it."""
    now_s = [100.0]

    class Waited:
        is_set = False

        def wait(self, seconds):
            now_s[0] += seconds
            return self.is_set

        def set(self):
            self.is_set = True

    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(threading, "Event", Waited)
    return now_s
