"""Which pictures of a live source the model gets; others are discarded and counted by reason.

Instants of the model's rate are k / fps seconds after the first frame. Each gets the picture that
arrived nearest to it, so that a source of the model's own rate loses none to jitter.
"""

from collections import deque
from datetime import datetime
from typing import NamedTuple

from mod_edge.runtime.capture.source import CaptureCounts, Frame, Image, Keep

# A longer time without a picture is a gap, after which the source settles again: what arrives then
# may have been buffered since. Many times the usual interval, for sources with few pictures.
MIN_GAP_S = 1.0
GAP_INTERVALS = 5
# What was buffered is read in this time: the source may have become faster in the gap.
MAX_SETTLE_S = 2.0
INTERVAL_WEIGHT = 0.1  # of the newest interval in their moving average


class Arrival(NamedTuple):
    """A picture that arrived at `time_s` of `Clock.now_s`, for an instant of the model's rate."""

    image: Image
    time_s: float
    at: datetime
    instant: int


class FrameQueue:
    """The pictures that wait for a reader, under a policy; reads no clock and starts no thread.

    `offer` comes first for every picture; those that it accepts are converted and `put`.

    How old a frame can be when it is taken: with `newest` one interval of the source while pictures
    arrive regularly; with `queue:N` N intervals of the model's rate more. A picture that waited
    longer than that by `MIN_GAP_S`, or by `GAP_INTERVALS` intervals of the source if that is more,
    is stale and never taken.

    Args:
        keep: newest or a queue.
        fps: the model's rate.
        settle_s: see `CapturePolicy`.
    """

    def __init__(self, keep: Keep, *, fps: float, settle_s: float) -> None:
        self._keep = keep
        self._fps = fps
        self._settle_s = settle_s
        self._waiting: deque[Arrival] = deque()
        self._start_s: float | None = None  # arrival of the first frame taken
        self._due = 0  # the first instant without a picture
        self._offered_s: float | None = None
        self._interval_s = 0.0  # between pictures, on average
        self._unsettled_s, self._settled_s = 0.0, 0.0
        self._num_captured = self._num_taken = self._num_between = self._num_dropped = 0
        self._num_settling = self._num_stale = 0

    def offer(self, time_s: float) -> bool:
        """Whether the picture that arrived at `time_s` is kept; if not, it is discarded."""
        self._note_arrival(time_s)
        has_begun = self._start_s is not None
        if not has_begun or self._instant(time_s) >= self._due or self._replaces_newest():
            return True
        self._num_captured += 1
        self._num_between += 1
        return False

    def put(self, image: Image, at: datetime) -> None:
        """Keep the picture offered last; discards an older one if there is no room.

        The picture itself is discarded if its instant's frame was taken since it was offered.

        Args:
            image: the picture.
            at: when it arrived, in UTC.
        """
        assert self._offered_s is not None, "offer() comes first"
        time_s = self._offered_s
        new = Arrival(image, time_s, at, self._instant(time_s))
        self._num_captured += 1
        replaces_newest = self._replaces_newest()
        if self._start_s is not None and new.instant < self._due and not replaces_newest:
            self._num_between += 1
            return
        if replaces_newest:
            self._discard_for(self._waiting.pop(), new)
        elif len(self._waiting) == self._keep.num_frames:
            self._waiting.popleft()
            self._num_dropped += 1
        self._waiting.append(new)
        self._due = max(self._due, new.instant + 1)

    def take(self, now_s: float) -> Frame | None:
        """The oldest picture that waits, as a frame; None if none is ready."""
        self._discard_stale(now_s)
        if not self.is_ready(now_s):
            return None
        arrival = self._waiting.popleft()
        if self._start_s is None:
            self._start_s = arrival.time_s
            self._due = 1
        time_s = arrival.instant / self._fps
        frame = Frame(self._num_taken, time_s, arrival.image, arrival.time_s, arrival.at)
        self._num_taken += 1
        return frame

    def is_ready(self, now_s: float) -> bool:
        """Whether a picture waits that is not stale and whose source has settled."""
        return self.next_s(now_s) is not None

    def next_s(self, now_s: float) -> float | None:
        """When the picture arrived that `take` would give; None if none is ready."""
        fresh = [each for each in self._waiting if not self._is_stale(each, now_s)]
        if not fresh or (now_s < self._settled_s and self._is_unsettled(fresh[0])):
            return None
        return fresh[0].time_s

    def ready_s(self) -> float | None:
        """When the picture that waits will be ready; None if none waits."""
        return self._settled_s if self._waiting else None

    @property
    def num_waiting(self) -> int:
        """Pictures that wait."""
        return len(self._waiting)

    @property
    def num_taken(self) -> int:
        """Frames taken so far."""
        return self._num_taken

    @property
    def num_captured(self) -> int:
        """Pictures that arrived so far."""
        return self._num_captured

    def counts(self, num_skipped_reads: int) -> CaptureCounts:
        """What became of every picture so far."""
        return CaptureCounts(
            num_captured=self._num_captured,
            num_taken=self._num_taken,
            num_between=self._num_between,
            num_dropped=self._num_dropped,
            num_settling=self._num_settling,
            num_stale=self._num_stale,
            num_waiting=len(self._waiting),
            num_skipped_reads=num_skipped_reads,
        )

    def stream_s(self, time_s: float) -> float:
        """Seconds of the stream at `time_s`; 0 before its first frame."""
        return 0.0 if self._start_s is None else max(0.0, time_s - self._start_s)

    def silent_s(self, time_s: float) -> float:
        """Seconds without a picture until `time_s`; 0 before the first."""
        return 0.0 if self._offered_s is None else time_s - self._offered_s

    def is_gap(self, time_s: float) -> bool:
        """Whether a picture that arrives at `time_s` follows on a gap."""
        return self._interval_s > 0 and self.silent_s(time_s) > self._longest_interval_s()

    def settle(self, time_s: float) -> None:
        """Let the source settle: what arrives from `time_s` on may have been buffered."""
        self._unsettled_s, self._settled_s = time_s, time_s + self._settle_s

    def _note_arrival(self, time_s: float) -> None:
        before_s, self._offered_s = self._offered_s, time_s
        if before_s is None:
            self.settle(time_s)
            return
        passed_s = time_s - before_s
        half_s = self._interval_s / 2
        if time_s < self._settled_s and passed_s <= self._longest_interval_s():
            if passed_s < half_s:  # still what was buffered: pictures of now come at intervals
                latest_s = self._unsettled_s + max(MAX_SETTLE_S, self._settle_s)
                self._settled_s = max(self._settled_s, min(time_s + half_s, latest_s))
        elif not self._interval_s:
            self._interval_s = passed_s
        else:
            usual_s = min(passed_s, GAP_INTERVALS * self._interval_s)
            self._interval_s += INTERVAL_WEIGHT * (usual_s - self._interval_s)

    def _instant(self, time_s: float) -> int:
        if self._start_s is None:
            return 0
        # half an interval early, so that the instant gets the picture nearest to it
        early = 0.5 * min(1.0, self._interval_s * self._fps)
        return int((time_s - self._start_s) * self._fps + early)

    def _replaces_newest(self) -> bool:
        """Whether the picture that arrives now takes the place of the newest one that waits."""
        if not self._waiting:
            return False
        is_first = self._start_s is None
        return is_first or self._keep.kind == "newest" or self._is_unsettled(self._waiting[-1])

    def _is_unsettled(self, arrival: Arrival) -> bool:
        return self._unsettled_s <= arrival.time_s < self._settled_s

    def _discard_for(self, old: Arrival, new: Arrival) -> None:
        if self._start_s is None or self._is_unsettled(old):
            self._num_settling += 1
        elif old.instant == new.instant:
            self._num_between += 1
        else:
            self._num_dropped += 1

    def _discard_stale(self, now_s: float) -> None:
        while self._waiting and self._is_stale(self._waiting[0], now_s):
            self._waiting.popleft()
            self._num_stale += 1

    def _is_stale(self, arrival: Arrival, now_s: float) -> bool:
        waits_s = self._keep.num_frames / self._fps if self._keep.kind == "queue" else 0.0
        return now_s - arrival.time_s > waits_s + self._longest_interval_s()

    def _longest_interval_s(self) -> float:
        return max(MIN_GAP_S, GAP_INTERVALS * self._interval_s)
