"""Pictures at the times of their stream, for servers that send them in bursts.

An HLS server publishes segments of some seconds. FFmpeg starts three segments back and reads them
as fast as it can: without a pace, all pictures of a segment would come at once and then none for
seconds, which is neither a stall nor a stream.
"""

from typing import Any

import cv2

from mod_edge.runtime.capture.clock import Clock, Pause


class PacedReader:
    """A capture whose pictures are due at their timestamps; late ones delay those after them.

    Args:
        capture: open; released with this reader.
        read_timeout_s: after which the source counts as stalled. Timestamps that jump ahead by more
            than half of it are those of another programme, or of a segment that was skipped: the
            picture is due now.
        clock: of the waits.
    """

    def __init__(self, capture: cv2.VideoCapture, read_timeout_s: float, clock: Clock) -> None:
        self._longest_wait_s = read_timeout_s / 2
        self._capture = capture
        self._clock = clock
        self._zero_s: float | None = None  # of the timestamps, on the clock
        self._pause = Pause(clock)

    def grab(self) -> bool:
        """Wait for the next picture until it is due; whether there is one, not after `release`."""
        return self._capture.grab() and self._pause.until(self._due_s())

    def retrieve(self) -> tuple[bool, Any]:
        """See `cv2.VideoCapture.retrieve`."""
        return self._capture.retrieve()

    def get(self, key: int, /) -> float:
        """See `cv2.VideoCapture.get`."""
        return self._capture.get(key)

    def release(self) -> None:
        """Close the capture and end a read that waits."""
        self._pause.end()
        self._capture.release()

    def _due_s(self) -> float:
        """When the picture just grabbed is due."""
        position_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        now_s = self._clock.now_s()
        left_s = 0.0 if self._zero_s is None else self._zero_s + position_s - now_s
        if self._zero_s is None or not 0 <= left_s <= self._longest_wait_s:
            self._zero_s = now_s - position_s
        return self._zero_s + position_s
