"""The newest frame of a camera or a stream at the model's rate.

A live source is read as fast as it delivers and only its newest frame is kept, so the model never
sees a frame older than one camera frame. Grid instants missed by a slow caller are counted.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, cast

from mod_edge.errors import ConfigError, SourceError
from mod_edge.profiles import Camera
from mod_edge.runtime.capture.open_live import OpenedLive, open_live
from mod_edge.runtime.capture.redaction import without_credentials
from mod_edge.runtime.capture.source import (
    EVERY,
    LIVE,
    CapturePolicy,
    Frame,
    Image,
    check_pace,
    stall_error,
)
from mod_edge.runtime.capture.source_name import LiveName, live_name

# The frames that FFmpeg read to probe a stream (3 of MJPEG, up to seconds of RTSP) arrive at once
# and are old: discard what arrives in this time before the first frame is returned.
SETTLE_S = 0.25
RETRY_S = 0.02  # between failed reads: without it a core is busy until the source counts as ended
JOIN_MARGIN_S = 1.0


class Arrival(NamedTuple):
    """A frame that arrived at `time_s` of time.monotonic()."""

    image: Image
    time_s: float


class LiveCapture(AbstractContextManager["LiveCapture"]):
    """The newest frame of a camera or stream at each instant of the `fps` grid.

    A thread reads as fast as the source delivers and keeps the newest frame, or as many as the
    policy allows. No frame is returned twice: a source slower than `fps` gives fewer frames, each
    with its own time.

    Args:
        source: as `parse_source` reads it, or a camera's number, or parsed; not a file.
        fps: frames/s of the grid, on time.monotonic().
        max_frames: end after this many frames.
        policy: which frames are queued and when the source has stalled or ended.
        wanted: picture size, rate and pixel format to request; see `open_live`.
        opened: the source, already opened by `open_live`; None opens it.

    Attributes:
        is_live: True.
        num_frames: returned so far.
        num_dropped: grid instants that passed while the caller was busy, so far.

    Raises:
        SourceError: the source cannot be opened; while iterating, it stalled or ended.
        ConfigError: fps or max_frames is not positive, or the policy is for files.
    """

    is_live = True

    def __init__(
        self,
        source: int | str | LiveName,
        *,
        fps: float,
        max_frames: int | None = None,
        policy: CapturePolicy = LIVE,
        wanted: Camera | None = None,
        opened: OpenedLive | None = None,
    ) -> None:
        check_pace(fps, max_frames)
        if policy.keep == EVERY or not math.isfinite(policy.stall_s):
            raise ConfigError(
                f"a live source cannot keep {policy.keep} frames and stall after "
                f"{policy.stall_s:g} s: wanted newest or queue:N, and a finite time"
            )
        self.num_frames = 0
        self.num_dropped = 0
        self._source = live_name(source)
        self._name = self._source.name
        self._policy = policy
        self._fps = fps
        self._max_frames = max_frames
        if opened is None:
            opened = open_live(self._source, read_timeout_s=policy.stall_s, wanted=wanted)
        self._capture = opened.reader
        self._warnings = list(opened.warnings)

        self._changed = threading.Condition()  # guards these eight, which both threads use
        self._waiting: deque[Arrival] = deque(maxlen=policy.keep.num_frames)
        self._num_arrived = 0
        self._num_failed = 0  # reads in a row
        self._num_skipped = 0  # failed reads between pictures
        self._arrived_s = time.monotonic()
        self._settled_s = math.inf  # when what was buffered before the first frame has arrived
        self._has_ended = False
        self._failure: SourceError | None = None

        self._is_closing = False
        self._is_finished = False
        self._start_s = -math.inf
        self._due = 0  # the k of the next grid instant k / fps
        self._asked_s: float | None = None  # when the caller began to wait for the next frame
        self._reader = threading.Thread(target=self._read, name="mod-edge capture", daemon=True)
        self._reader.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        if self.num_frames == self._max_frames or self._is_closing:
            raise StopIteration
        with self._changed:
            if self._due == 0:
                self._wait_for_first_frame()
            else:
                self._wait_for_instant()
            if not self._wait_for_new_frame():
                self._finish()
                raise StopIteration
            return self._take_first()

    @property
    def is_ready(self) -> bool:
        """Whether the next frame, the end or an error comes without waiting."""
        if self.num_frames == self._max_frames or self._is_closing:
            return True
        with self._changed:
            now_s = time.monotonic()
            has_ended = self._has_ended and not self._waiting
            if has_ended or now_s >= self._stalls_s(now_s):
                return True
            if self._due == 0:
                return now_s >= self._settled_s
            passed = int((now_s - self._start_s) * self._fps)
            if self._waiting:
                return passed >= self._due
            # The caller has time, so it is the source that missed the instants before this one.
            self._due = max(self._due, passed)
            return False

    @property
    def warnings(self) -> list[str]:
        """Sentences about other settings, bad pictures and the end of the source, so far."""
        if not self._num_skipped:
            return self._warnings
        is_one = self._num_skipped == 1
        reads, were = ("1 read", "was") if is_one else (f"{self._num_skipped} reads", "were")
        skipped = f"{self._name}: {reads} gave no picture and {were} skipped"
        return [*self._warnings, skipped]

    def close(self) -> None:
        """Stop reading and wait for the thread, at most as long as for a frame."""
        self._is_closing = True
        # With a silent camera V4L2 waits for its own timeout: the thread is a daemon, let it run
        self._reader.join(self._policy.stall_s + JOIN_MARGIN_S)

    def _read(self) -> None:
        """Queue frames until the source ends, fails or is closed; the thread's body."""
        failure: SourceError | None = None
        try:
            failure = self._queue_frames()
        except Exception as exc:  # raised again in the caller's thread, by _finish()
            reason = without_credentials(str(exc))
            failure = SourceError(f"{self._name} cannot be read any more: {reason}")
            failure.__cause__ = exc
        finally:
            self._capture.release()
            with self._changed:  # in finally, so that a waiting caller always wakes
                self._failure = failure
                self._has_ended = True
                self._changed.notify_all()

    def _queue_frames(self) -> SourceError | None:
        """Queue frames until no more come; returns why, None if that is no failure."""
        while not self._is_closing:
            is_picture, image = self._capture.read()
            now_s = time.monotonic()
            # Before the picture is looked at: one that a timed-out read() brings was held back by
            # the decoder and is as old as the silence.
            if now_s - self._arrived_s >= self._policy.stall_s:
                return self._stalled(now_s)
            if is_picture and image.size:
                self._queue(Arrival(cast(Image, image), now_s))
                continue
            self._num_failed += 1
            if self._num_failed == self._policy.max_failed_reads:
                return self._ended()
            time.sleep(RETRY_S)
        return None

    def _queue(self, arrival: Arrival) -> None:
        with self._changed:
            self._num_arrived += 1
            self._num_skipped += self._num_failed
            self._num_failed = 0
            self._arrived_s = arrival.time_s
            if self._num_arrived == 1:
                self._settled_s = arrival.time_s + SETTLE_S
            self._waiting.append(arrival)
            self._changed.notify_all()

    def _ended(self) -> SourceError | None:
        """None for a source that may end by itself."""
        if self._policy.is_finite and self._num_arrived:
            return None
        return SourceError(
            f"{self._name} ended after {self._num_arrived} frames ({self._num_failed} reads in a "
            f"row failed), but a live source has no end of its own; {self._source.advice}"
        )

    def _stalled(self, now_s: float) -> SourceError:
        return stall_error(
            self._name,
            now_s - self._arrived_s,
            self._policy,
            num_frames=self._num_arrived,
            num_failed=self._num_failed,
        )

    def _wait_for_first_frame(self) -> None:
        self._wait_for_new_frame()
        self._changed.wait_for(lambda: self._has_ended, self._settled_s - time.monotonic())
        self._start_s = time.monotonic()

    def _wait_for_instant(self) -> None:
        """Sleep until the next instant that has not passed; count those that have passed."""
        passed = int((time.monotonic() - self._start_s) * self._fps)
        if passed > self._due:  # the newest instant that passed is served now, not dropped
            self.num_dropped += passed - self._due
            self._due = passed
        due_s = self._start_s + self._due / self._fps
        while (left_s := due_s - time.monotonic()) > 0:
            if self._has_ended and not self._waiting:
                return
            self._changed.wait(left_s)

    def _wait_for_new_frame(self) -> bool:
        """False if the source has ended and no frame is left."""
        while not self._waiting:
            if self._has_ended:
                return False
            now_s = time.monotonic()
            left_s = self._stalls_s(now_s) - now_s
            if left_s <= 0:
                raise self._stalled(now_s)
            self._changed.wait(left_s)
        return True

    def _stalls_s(self, now_s: float) -> float:
        """When the source counts as stalled if the caller waits for it and no frame comes."""
        if self._asked_s is None:
            self._asked_s = now_s
        return max(self._arrived_s, self._asked_s) + self._policy.stall_s

    def _take_first(self) -> Frame:
        arrival = self._waiting.popleft()
        # a late frame may belong to a later instant: that is the source's delay, not a drop
        instant = max(self._due, int((arrival.time_s - self._start_s) * self._fps))
        frame = Frame(self.num_frames, instant / self._fps, arrival.image)
        self.num_frames += 1
        self._due = instant + 1
        self._asked_s = None
        return frame

    def _finish(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._is_finished:
            self._is_finished = True
            lasted_s = self._arrived_s - self._start_s
            self._warnings.append(
                f"{self._name} ended after {max(lasted_s, 0):.1f} s; {self.num_frames} frames used"
            )
