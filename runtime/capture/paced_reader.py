"""Pictures at the times of their stream, for servers that send them in bursts.

An HLS server publishes segments of some seconds. FFmpeg starts three segments back and reads them
as fast as it can: without a pace, all pictures of a segment would come at once and then none for
seconds, which is neither a stall nor a stream.
"""

import threading
import time
from typing import Any

import cv2


class PacedReader:
    """A capture whose pictures are due at their timestamps; late ones delay those after them.

    Args:
        capture: open; released with this reader.
        read_timeout_s: after which the source counts as stalled. Timestamps that jump ahead by more
            than half of it are those of another programme, or of a segment that was skipped: the
            picture is due now.
    """

    def __init__(self, capture: cv2.VideoCapture, read_timeout_s: float) -> None:
        self._longest_wait_s = read_timeout_s / 2
        self._capture = capture
        self._zero_s: float | None = None  # of the timestamps, on time.monotonic()
        self._is_released = threading.Event()

    def grab(self) -> bool:
        """Wait for the next picture until it is due; whether there is one, not after `release`."""
        return self._capture.grab() and not self._is_released.wait(self._left_s())

    def retrieve(self) -> tuple[bool, Any]:
        """See `cv2.VideoCapture.retrieve`."""
        return self._capture.retrieve()

    def get(self, key: int, /) -> float:
        """See `cv2.VideoCapture.get`."""
        return self._capture.get(key)

    def release(self) -> None:
        """Close the capture and end a read that waits."""
        self._is_released.set()
        self._capture.release()

    def _left_s(self) -> float:
        """Seconds until the picture just grabbed is due."""
        position_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        now_s = time.monotonic()
        left_s = 0.0 if self._zero_s is None else self._zero_s + position_s - now_s
        if self._zero_s is None or not 0 <= left_s <= self._longest_wait_s:
            self._zero_s = now_s - position_s
            return 0.0
        return left_s
