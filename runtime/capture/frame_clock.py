"""The time of each frame of a video file, from OpenCV's timestamps."""

import math

from mod_edge.errors import SourceError

MAX_HEADER_FPS = 1000.0  # above it the header holds a time base (90000), not a frame rate
# In damaged files timestamps jump back for a frame or two (28.4, 22.7, 28.5 s, measured). If they
# stay behind for this much video, the file's clock has restarted, as in joined recordings.
MAX_BEHIND_S = 1.0


class FrameClock:
    """Seconds of a file's frames, from timestamps that may be missing or jump back.

    Args:
        header_fps: frames/s according to the file's header; 0 or implausible where it has none.
    """

    def __init__(self, header_fps: float) -> None:
        is_usable = math.isfinite(header_fps) and 0 < header_fps <= MAX_HEADER_FPS
        self.step_s = 1 / header_fps if is_usable else None
        self.time_s = -math.inf
        self._offset_s = 0.0
        self._behind_since_s = math.inf  # the first timestamp of those that jumped back

    def advance(self, position_ms: float) -> float:
        """Seconds of the frame just grabbed; never less than those of the previous frame.

        Args:
            position_ms: CAP_PROP_POS_MSEC right after grab(). With FFmpeg that is the timestamp of
                this frame from the stream's start (OpenCV 4.8.1 and 5.0.0 agree), or 0 for a frame
                without a timestamp.

        Raises:
            SourceError: the frame has no timestamp and the header has no frame rate.
        """
        if self.time_s == -math.inf:
            self.time_s = 0.0  # ignores position_ms: OpenCV 4.8 reports the decoding time here
            return self.time_s
        time_s = position_ms / 1000 + self._offset_s
        if position_ms <= 0 or not math.isfinite(position_ms):
            self.time_s = self._next_s()
        elif time_s >= self.time_s:
            self.time_s = time_s
            self._behind_since_s = math.inf
        else:
            self._behind_since_s = min(self._behind_since_s, time_s)
            if time_s - self._behind_since_s > MAX_BEHIND_S:
                self._offset_s += self._next_s() - time_s
                self.time_s = self._next_s()
                self._behind_since_s = math.inf
        return self.time_s

    def _next_s(self) -> float:
        if self.step_s is None:
            raise SourceError(
                f"the video has neither timestamps nor a frame rate after {self.time_s:.2f} s; "
                "rewrite it with: ffmpeg -i VIDEO -c:v libx264 -r 30 fixed.mp4"
            )
        return self.time_s + self.step_s
