"""A video for the tests that stop a stream before its end."""

import cv2
import numpy as np
import pytest

from tests.commands.mod_edge_command import LONG_VIDEO_FRAMES


@pytest.fixture(scope="session")
def long_video(tmp_path_factory):
    """`LONG_VIDEO_FRAMES` frames at the model's rate."""
    path = tmp_path_factory.mktemp("video") / "long.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 2, (32, 32))
    for number in range(LONG_VIDEO_FRAMES):
        writer.write(np.full((32, 32, 3), number % 256, np.uint8))
    writer.release()
    return path
