"""A moving test pattern in real time, with its picture's number: a camera that is always there."""

import cv2
import numpy as np

from mod_edge.profiles import Camera
from mod_edge.runtime.capture.clock import Clock, Pause
from mod_edge.runtime.capture.source import Image

BACKGROUND = (64, 48, 32)  # blue, green, red, as all pictures here
BAR = (0, 160, 255)
TEXT = (255, 255, 255)
BARS_PER_WIDTH = 8
CROSSING_S = 4.0  # time of the bar from the left side to the right


class PatternReader:
    """The picture of each 1 / fps seconds since it was made; numbers that nobody read are skipped.

    Args:
        wanted: size and rate of the pictures.
        clock: of the waits.
    """

    def __init__(self, wanted: Camera, clock: Clock) -> None:
        self._wanted = wanted
        self._clock = clock
        self._start_s = clock.now_s()
        self._next = 0
        self._pause = Pause(clock)

    def grab(self) -> bool:
        """Wait until the newest picture is due; False after `release`."""
        passed = int((self._clock.now_s() - self._start_s) * self._wanted.fps)
        number = max(self._next, passed)
        if not self._pause.until(self._start_s + number / self._wanted.fps):
            return False
        self._next = number + 1
        return True

    def retrieve(self) -> tuple[bool, Image]:
        """True, and the picture grabbed last."""
        return True, draw_pattern(self._next - 1, self._wanted)

    def get(self, _key: int, /) -> float:
        """0: no property is known."""
        return 0.0

    def release(self) -> None:
        """End a grab that waits, and all later ones."""
        self._pause.end()


def draw_pattern(number: int, wanted: Camera) -> Image:
    """(H, W, 3) uint8 BGR: a bar that moves to the right, and the number in the middle."""
    width, height = wanted.width, wanted.height
    image = np.full((height, width, 3), BACKGROUND, np.uint8)
    bar = max(1, width // BARS_PER_WIDTH)
    left = int(number / wanted.fps / CROSSING_S * width) % width
    columns = np.arange(left, left + bar) % width
    image[:, columns] = BAR
    text, font = str(number), cv2.FONT_HERSHEY_SIMPLEX
    scale = height / 100  # digits of a fifth of the height
    thick = max(1, round(2 * scale))
    (text_width, text_height), _ = cv2.getTextSize(text, font, scale, thick)
    corner = ((width - text_width) // 2, (height + text_height) // 2)
    cv2.putText(image, text, corner, font, scale, TEXT, thick, cv2.LINE_AA)
    return image
