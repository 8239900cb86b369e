"""What tests that stop or disturb a stream share: a long video, and signals as in a terminal."""

import signal

import cv2
import numpy as np
import pytest

from tests.commands.mod_edge_command import LONG_VIDEO_FRAMES


@pytest.fixture(autouse=True)
def heard_hangups():
    """SIGHUP as in a terminal: a test run under nohup ignores it, and processes inherit that."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def long_video(tmp_path_factory):
    """`LONG_VIDEO_FRAMES` frames at the model's rate."""
    path = tmp_path_factory.mktemp("video") / "long.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 2, (32, 32))
    for number in range(LONG_VIDEO_FRAMES):
        writer.write(np.full((32, 32, 3), number % 256, np.uint8))
    writer.release()
    return path
