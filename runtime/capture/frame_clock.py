"""The time of each frame of a video file, from OpenCV's timestamps."""

import math

from mod_edge.errors import SourceError

MAX_HEADER_FPS = 1000.0  # above it the header holds a time base (90000), not a frame rate
# In damaged files timestamps jump back for a frame or two (28.4, 22.7, 28.5 s, measured). If they
# stay behind for this much video, the file's clock has restarted, as in joined recordings.
MAX_BEHIND_S = 1.0
# How long one frame may last, and so be repeated: a slide or the unchanged screen of a recording
# lasts for minutes, a gap between joined recordings usually for hours. Time lapses and slide shows
# with longer frames have a low rate in the header: there a frame may last for ten average ones.
MAX_FRAME_S = 600.0
MAX_FRAME_STEPS = 10


class FrameClock:
    """Seconds of a file's frames, from timestamps that may be missing, jump back or leave gaps.

    After a gap longer than `max_frame_s` the clock continues as if the gap were not there, instead
    of repeating one picture for hours.

    Args:
        header_fps: frames/s according to the file's header; 0 or implausible where it has none.

    Attributes:
        step_s: seconds of one frame according to the header; None where it has no frame rate.
        time_s: of the frame last grabbed; -inf before the first.
        interval_s: between the last two frames; `step_s` or 0 before the second.
        max_frame_s: longest time between two frames that is not a gap.
        num_gaps: gaps so far.
        skipped_s: seconds left out at the gaps so far.
    """

    def __init__(self, header_fps: float) -> None:
        is_usable = math.isfinite(header_fps) and 0 < header_fps <= MAX_HEADER_FPS
        self.step_s = 1 / header_fps if is_usable else None
        self.time_s = -math.inf
        self.max_frame_s = max(MAX_FRAME_S, MAX_FRAME_STEPS * (self.step_s or 0.0))
        self.num_gaps = 0
        self.skipped_s = 0.0
        self._offset_s = 0.0
        self.interval_s = self.step_s or 0.0
        self._is_before_zero = True  # until the first positive timestamp
        self._behind_since_s = math.inf  # the first timestamp of those that jumped back
        self._last_gap_s = 0.0
        self._after_gap_s = -math.inf  # time_s of the first frame after the last gap

    def advance(self, position_ms: float) -> float:
        """Seconds of the frame just grabbed; never less than those of the previous frame.

        Args:
            position_ms: CAP_PROP_POS_MSEC right after grab(). With FFmpeg that is the timestamp of
                this frame from the stream's start (OpenCV 4.8.1 and 5.0.0 agree), or 0 for a frame
                without a timestamp. Negative where FFmpeg takes a later frame for the start.

        Raises:
            SourceError: the frame has no timestamp and the header has no frame rate.
        """
        if self.time_s == -math.inf:
            self.time_s = 0.0  # ignores position_ms: OpenCV 4.8 reports the decoding time here
            return self.time_s
        time_s = position_ms / 1000 + self._offset_s
        if position_ms <= 0 or not math.isfinite(position_ms):
            self.time_s = self._next_s()
            if self._is_before_zero and -1000 * self.max_frame_s <= position_ms < 0:
                self._offset_s = self.time_s - position_ms / 1000
            return self.time_s
        self._is_before_zero = False
        if time_s - self.time_s > self.max_frame_s:
            self._skip_gap(time_s)
        elif time_s >= self.time_s:
            self._follow(time_s)
        elif self._was_no_gap(time_s):
            self._undo_gap(time_s)
        else:
            self._wait_or_restart(time_s)
        return self.time_s

    def _follow(self, time_s: float) -> None:
        self.interval_s = time_s - self.time_s
        self.time_s = time_s
        self._behind_since_s = math.inf

    def _skip_gap(self, time_s: float) -> None:
        """Let the frame follow the previous one at the usual interval."""
        self._last_gap_s = time_s - self.time_s - self.interval_s
        self.num_gaps += 1
        self.skipped_s += self._last_gap_s
        self._offset_s -= self._last_gap_s
        self._follow(self.time_s + self.interval_s)
        self._after_gap_s = self.time_s

    def _was_no_gap(self, time_s: float) -> bool:
        """Whether the timestamps soon return to those before the last gap."""
        ahead_s = time_s + self._last_gap_s - self.time_s
        is_soon = self.time_s - self._after_gap_s <= MAX_BEHIND_S
        return is_soon and 0 <= ahead_s <= self.max_frame_s

    def _undo_gap(self, time_s: float) -> None:
        """Return to the clock before the last gap, which was one damaged timestamp."""
        self.num_gaps -= 1
        self.skipped_s -= self._last_gap_s
        self._offset_s += self._last_gap_s
        self._follow(time_s + self._last_gap_s)
        self._after_gap_s = -math.inf

    def _wait_or_restart(self, time_s: float) -> None:
        """Keep the time while timestamps are behind; after `MAX_BEHIND_S` continue from it."""
        self._behind_since_s = min(self._behind_since_s, time_s)
        if time_s - self._behind_since_s > MAX_BEHIND_S:
            self._offset_s += self._next_s() - time_s
            self.time_s = self._next_s()
            self._behind_since_s = math.inf
            self._after_gap_s = -math.inf

    def _next_s(self) -> float:
        if self.step_s is None:
            raise SourceError(
                f"the video has neither timestamps nor a frame rate after {self.time_s:.2f} s; "
                "rewrite it with: ffmpeg -i VIDEO -c:v libx264 -r 30 fixed.mp4"
            )
        return self.time_s + self.step_s
