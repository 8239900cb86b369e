"""A generated clip with moving shapes, always the same, for checks without a video file."""

from collections.abc import Iterator

import cv2
import numpy as np

from mod_edge.runtime.capture.source import Frame, Image

HEIGHT, WIDTH = 240, 320
SCENE_FRAMES = 12  # then the background changes, as between two shots


class SampleVideo:
    """Shapes that move over changing backgrounds; a source like `VideoFile`."""

    is_live = False
    is_ready = True
    num_dropped = 0

    def __init__(self, fps: float, num_frames: int) -> None:
        """A clip of `num_frames` frames at `fps` frames/s."""
        self.warnings: list[str] = []
        self._fps = fps
        self._num_frames = num_frames

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self._num_frames):
            yield Frame(index, index / self._fps, _drawn(index))


def _drawn(index: int) -> Image:
    """Frame `index`, (H, W, 3) uint8 BGR."""
    scene = index // SCENE_FRAMES
    shades = np.linspace(30 + 50 * scene % 150, 90 + 70 * scene % 160, WIDTH, dtype=np.float32)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[..., scene % 3] = shades
    image[..., (scene + 1) % 3] = shades[::-1] / 2
    x, y = (37 * index + 40) % WIDTH, (23 * index + 60) % HEIGHT
    cv2.circle(image, (x, y), 28, (40, 200, 240), thickness=-1)
    left, top = (WIDTH - 11 * index) % WIDTH, 150 + 10 * (index % 7)
    cv2.rectangle(image, (left, top), (left + 70, top + 30), (220, 90, 60), thickness=-1)
    return image
