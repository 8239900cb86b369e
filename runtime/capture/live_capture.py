"""The frames of a camera or a stream at the model's rate, as a policy keeps them.

A thread grabs pictures as fast as the source delivers and converts only those that are kept. It
opens a source again that stalled or ended, if the policy says so.
"""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from threading import Condition, Thread, current_thread
from typing import cast

import cv2

from mod_edge.errors import SourceError
from mod_edge.profiles import Camera
from mod_edge.runtime.capture.clock import Clock, rfc3339
from mod_edge.runtime.capture.frame_queue import FrameQueue
from mod_edge.runtime.capture.frozen_watch import FrozenWatch
from mod_edge.runtime.capture.live_source import (
    FrozenEvent,
    GapEvent,
    LostEvent,
    SizeEvent,
    UnfrozenEvent,
)
from mod_edge.runtime.capture.open_live import (
    LiveReader,
    OpenedLive,
    Opener,
    is_recording,
    open_live,
)
from mod_edge.runtime.capture.opencv import open_quietly, open_unredirected
from mod_edge.runtime.capture.reconnect import Outage
from mod_edge.runtime.capture.redaction import without_credentials
from mod_edge.runtime.capture.source import (
    LIVE,
    CaptureCounts,
    CapturePolicy,
    Frame,
    Image,
    Loss,
    check_live,
    check_pace,
    stalled,
)
from mod_edge.runtime.capture.source_name import LiveName, StreamAddress, live_name
from mod_edge.runtime.events import Event

RETRY_S = 0.02  # between failed reads: without it a core is busy until the source counts as ended
JOIN_MARGIN_S = 1.0
# After the stall, until a read that should have timed out is left to itself.
HANG_MARGIN_S = 1.0
HUNG_OPEN_S = 40.0  # the same for an opening: GStreamer's own time-out is 30 s
MAX_HUNG = 8  # threads and connections that hang, until no more are opened
LONGEST_WAIT_S = 60.0  # of a caller, before it looks at the clock again
MAX_EVENTS = 1000  # that wait for a caller who never takes them
RECONNECT_ADVICE = "--reconnect 60s opens a lost source again"
PAUSED = "the source paused, or this process was suspended"


class LiveCapture(AbstractContextManager["LiveCapture"]):
    """The frames of a camera or stream for the instants of the `fps` grid; a `LiveSource`.

    No frame is returned twice: a source slower than `fps` gives fewer frames, each with its own
    time. How old a frame can be: see `FrameQueue`.

    Args:
        source: as `parse_source` reads it, or a camera's number, or parsed; not a file.
        fps: frames/s of the grid.
        max_frames: end after this many frames.
        policy: which frames are kept, and when the source has stalled, ended or frozen.
        wanted: picture size, rate and pixel format to request; see `open_live`.
        opened: the source, already opened by `open_live`; None opens it.
        clock: that frames and waits are timed with.

    Attributes:
        is_live: True.
        clock: as given.

    Raises:
        SourceError: the source cannot be opened; while iterating, it stalled or ended, and was not
            opened again in the time that the policy allows.
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
        clock: Clock | None = None,
    ) -> None:
        check_pace(fps, max_frames)
        self._source = live_name(source)
        self._name = self._source.name
        check_live(self._name, policy)
        self.clock = clock or Clock()
        self._warnings: list[str] = []
        self._policy = policy
        self._max_frames = max_frames
        self._wanted = wanted
        if opened is None:
            opened = self._open(open_quietly)
        self._warnings += opened.warnings

        self._changed = Condition()  # guards what both threads write
        self._queue = FrameQueue(policy.keep, fps=fps, settle_s=policy.settle_s)
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._num_failed = 0  # reads in a row
        self._num_skipped = 0  # failed reads between pictures
        self._heard_s = self.clock.now_s()  # of the last picture, or when the source was opened
        self._outage: Outage | None = None
        self._silent_s: float | None = None  # since when, in a gap; the reading thread's
        self._num_gaps, self._gaps_s = 0, 0.0
        self._has_ended = False
        self._failure: SourceError | None = None

        self._watch = FrozenWatch(policy.frozen_after_s)
        self._size: tuple[int, int] | None = None  # width and height of the last picture
        self._is_closing = False
        self._is_finished = False
        self._asked_s: float | None = None  # when the caller began to wait for the next frame
        self._is_opening = False  # again, in the reading thread
        self._attempt_s: float | None = None  # when the present attempt to open it began
        self._hung: list[Thread] = []  # left in a read or an opening
        self._start_reader(opened.reader, None)

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        with self._changed:
            while not self._is_over():
                now_s = self.clock.now_s()
                frame = self._queue.take(now_s)
                if frame is not None:
                    self._asked_s = None
                    return frame
                if self._has_ended:
                    self._finish()
                    break
                if self._has_stalled(now_s):
                    raise self._stalled(now_s).error()
                self._wait(now_s)
        raise StopIteration

    def wait(self) -> None:
        """Return once `is_ready`."""
        with self._changed:
            while not self._is_ready(now_s := self.clock.now_s()):
                self._wait(now_s)

    @property
    def is_ready(self) -> bool:
        """Whether the next frame, an event, the end or an error comes without waiting."""
        with self._changed:
            return self._is_ready(self.clock.now_s())

    def take_events(self) -> list[Event]:
        """What happened to the source since the last call: gaps, sizes, frozen pictures.

        What happened after the oldest frame that waits comes once that frame is taken.
        """
        with self._changed:
            next_s = None if self._is_over() else self._queue.next_s(self.clock.now_s())
            until_s = math.inf if next_s is None else round(self._queue.stream_s(next_s), 3)
            events: list[Event] = []
            while self._events and self._events[0].time_s <= until_s:
                events.append(self._events.popleft())
        return events

    @property
    def num_waiting(self) -> int:
        """Frames that come without waiting."""
        with self._changed:
            if self._is_over() or not self._queue.is_ready(self.clock.now_s()):
                return 0
            return self._queue.num_waiting

    @property
    def num_frames(self) -> int:
        """Frames returned so far."""
        return self._queue.num_taken

    @property
    def num_dropped(self) -> int:
        """Frames at the model's rate dropped so far because the caller was too slow."""
        return self.counts.num_dropped

    @property
    def counts(self) -> CaptureCounts:
        """What became of every picture so far."""
        with self._changed:
            return self._queue.counts(self._num_skipped)

    @property
    def warnings(self) -> list[str]:
        """Sentences about other settings, bad pictures, gaps and the end of the source, so far."""
        warnings = list(self._warnings)
        if self._num_skipped:
            is_one = self._num_skipped == 1
            reads, were = ("1 read", "was") if is_one else (f"{self._num_skipped} reads", "were")
            warnings.append(f"{self._name}: {reads} gave no picture and {were} skipped")
        if self._num_gaps:
            gaps = "1 gap" if self._num_gaps == 1 else f"{self._num_gaps} gaps"
            warnings.append(f"{self._name}: {gaps} without pictures, {self._gaps_s:.1f} s together")
        if freezes := self._watch.num_freezes:
            times = "once" if freezes == 1 else f"{freezes} times"
            warnings.append(f"{self._name}: the picture froze {times}")
        return warnings

    def end(self) -> None:
        """End the iteration and the reading, from any thread; returns at once."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stop reading and wait for the thread, at most as long as for a frame."""
        self.end()
        # With a silent camera V4L2 waits for its own timeout: the thread is a daemon, let it run
        self._reader.join(self._policy.stall_s + JOIN_MARGIN_S)

    # ---- the caller's thread, with the lock ----

    def _is_over(self) -> bool:
        return self._is_closing or self._queue.num_taken == self._max_frames

    def _is_ready(self, now_s: float) -> bool:
        if self._is_over() or self._has_ended or self._events:
            return True
        return self._queue.is_ready(now_s) or self._has_stalled(now_s)

    def _wait(self, now_s: float) -> None:
        """Wait for the other thread, for a picture to be settled, or for a stall."""
        wakes_s = min(self._stalls_s(now_s), now_s + LONGEST_WAIT_S)
        ready_s = self._queue.ready_s()
        if ready_s is not None and ready_s > now_s:
            wakes_s = min(wakes_s, ready_s)
        self.clock.wait(self._changed, max(0.0, wakes_s - now_s))

    def _has_stalled(self, now_s: float) -> bool:
        """Whether the caller waits for a source that stalled and is not opened again.

        A reader that hangs is left here: only the caller can see that it does.
        """
        if now_s < self._stalls_s(now_s):
            return False
        if self._policy.reconnect_s:
            self._leave_reader(now_s)
        return not self._policy.reconnect_s

    def _stalls_s(self, now_s: float) -> float:
        """When the source counts as stalled if no picture comes; notes that the caller waits."""
        if self._is_opening:
            return math.inf if self._attempt_s is None else self._attempt_s + HUNG_OPEN_S
        if self._asked_s is None:
            self._asked_s = now_s
        margin_s = HANG_MARGIN_S if self._policy.reconnect_s else 0.0
        return max(self._heard_s, self._asked_s) + self._policy.stall_s + margin_s

    def _leave_reader(self, now_s: float) -> None:
        """Open the source again in another thread, because a read or an opening does not return.

        FFmpeg's time-out does not end a read of bytes that hold no picture, and devices have no
        time-out for opening. The old thread releases its reader when it returns.
        """
        lost, self._is_opening = self._stalled(now_s), True
        if self._attempt_s is not None:
            reason = f"opening {self._name} took longer than {HUNG_OPEN_S:g} s"
            lost, self._attempt_s = replace(lost, reason=reason), None
        self._hung.append(self._reader)
        self._start_reader(None, lost)

    def _start_reader(self, reader: LiveReader | None, lost: Loss | None) -> None:
        self._reader = Thread(
            target=self._read, args=(reader, lost), name="mod-edge capture", daemon=True
        )
        self._reader.start()

    def _finish(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._is_finished:
            self._is_finished = True
            lasted_s = self._queue.stream_s(self._heard_s)
            self._warnings.append(
                f"{self._name} ended after {lasted_s:.1f} s; {self._queue.num_taken} frames used"
            )

    # ---- the reading thread ----

    def _read(self, reader: LiveReader | None, lost: Loss | None) -> None:
        """Queue pictures until the source ends, is lost for good or is closed; the thread.

        Args:
            reader: the open source; None opens it again.
            lost: why, in that case.
        """
        failure: SourceError | None = None
        try:
            while reader or (lost and (reader := self._open_again(lost))):
                try:
                    lost = self._queue_pictures(reader)
                finally:
                    reader.release()
                    reader = None
        except SourceError as exc:  # raised again in the caller's thread, by _finish()
            failure = exc
        except Exception as exc:
            reason = without_credentials(str(exc))
            failure = SourceError(f"{self._name} cannot be read any more: {reason}")
            failure.__cause__ = exc
        finally:
            with self._changed:  # in finally, so that a waiting caller always wakes
                if not self._is_left():
                    self._failure = failure
                    self._has_ended = True
                    self._changed.notify_all()

    def _is_left(self) -> bool:
        """Whether this thread's read or opening hung, so that another thread reads."""
        return current_thread() is not self._reader

    def _queue_pictures(self, reader: LiveReader) -> Loss | None:
        """Queue pictures until no more come; returns why, None if that is no failure."""
        while not self._is_over():
            is_picture = reader.grab()
            now_s, at = self.clock.now_s(), self.clock.utc()
            if self._is_left():
                return None
            # Before the picture is looked at: one that a timed-out grab() brings was held back by
            # the decoder and is as old as the silence.
            if now_s - self._heard_s >= self._policy.stall_s:
                return self._stalled(now_s)
            if is_picture and self._is_used(reader, now_s, at):
                self._heard_s = now_s
                continue
            self._num_failed += 1
            if self._num_failed == self._policy.max_failed_reads:
                return self._ended()
            self._pause(RETRY_S)
        return None

    def _is_used(self, reader: LiveReader, now_s: float, at: datetime) -> bool:
        """Discard or queue the picture just grabbed; False if it cannot be converted."""
        image: Image | None = None
        with self._changed:
            if self._silent_s is None and (self._outage or self._queue.is_gap(now_s)):
                self._silent_s = now_s - self._queue.silent_s(now_s)
            if self._silent_s is not None:
                self._queue.settle(now_s)
            is_kept = self._queue.offer(now_s)
        if is_kept and (image := _converted(reader)) is None:
            return False
        events: list[Event] = []
        if image is not None:
            events = self._gap_until(now_s) + self._seen_in(image, now_s)
        with self._changed:
            self._num_skipped += self._num_failed
            self._num_failed = 0
            if image is not None:
                self._events += events
                self._queue.put(image, at)
                self._changed.notify_all()
        return True

    def _gap_until(self, now_s: float) -> list[Event]:
        """The gap that a picture ends which can be converted; none if there was none."""
        if self._silent_s is None:
            return []
        gap_s, self._silent_s = now_s - self._silent_s, None
        outage, self._outage = self._outage, None
        self._watch.skip(gap_s)
        self._num_gaps += 1
        self._gaps_s += gap_s
        num_attempts, reason = (outage.num_attempts, outage.reason) if outage else (0, PAUSED)
        event = GapEvent(self._queue.stream_s(now_s), round(gap_s, 3), num_attempts, reason)
        return [self._stamped(event)]

    def _seen_in(self, image: Image, now_s: float) -> list[Event]:
        """What a new picture shows: another size, a frozen camera."""
        events: list[Event] = []
        time_s = self._queue.stream_s(now_s)
        height, width = image.shape[:2]
        old, self._size = self._size, (width, height)
        if old is not None and old != self._size:
            events.append(SizeEvent(time_s, width, height, *old))
        if math.isfinite(self._policy.frozen_after_s) and self._watch.has_changed(image, now_s):
            kind = FrozenEvent if self._watch.is_frozen else UnfrozenEvent
            events.append(kind(time_s, round(self._watch.still_s, 3)))
        return [self._stamped(event) for event in events]

    def _stamped(self, event: Event) -> Event:
        """The event with its time of day, and a time of the stream to the millisecond."""
        return replace(event, time_s=round(event.time_s, 3), at=rfc3339(self.clock.utc()))

    def _pause(self, wait_s: float) -> None:
        """Wait, at most until the source is closed."""
        with self._changed:
            if not self._is_over():
                self.clock.wait(self._changed, wait_s)

    # ---- lost and opened again, in the reading thread ----

    def _open(self, opener: Opener) -> OpenedLive:
        return open_live(
            self._source,
            read_timeout_s=self._policy.stall_s,
            wanted=self._wanted,
            opener=opener,
            clock=self.clock,
        )

    def _open_again(self, lost: Loss) -> LiveReader | None:
        """The source, opened again; None if this object is closed meanwhile.

        Raises:
            SourceError: the policy does not allow it, or its time is used up.
        """
        with self._changed:
            if self._is_over() or self._is_left():
                return None
            if not self._policy.reconnect_s:
                raise lost.error()
            self._is_opening = True
        outage = self._begin_outage(lost)
        last = lost.reason
        while (left_s := outage.since_s + self._policy.reconnect_s - self.clock.now_s()) > 0:
            self._pause(min(next(outage.delays_s), left_s))
            if self._is_over():
                return None
            if (num_hung := self._num_hung()) >= MAX_HUNG:
                last = f"{num_hung} earlier connections still hang"
                continue
            outage.num_attempts += 1
            try:
                reader = self._opened_again()
            except SourceError as exc:
                if self._is_left():
                    return None
                last = str(exc)
                continue
            if reader is not None:
                self._check_still_live(reader)
            return reader
        raise SourceError(
            f"{outage.reason}; no picture came in {self._policy.reconnect_s:g} s and "
            f"{outage.num_attempts} attempts to open it again, last: {last}; raise --reconnect "
            "or use --reconnect forever"
        )

    def _opened_again(self) -> LiveReader | None:
        """The source, opened in this attempt; None if that took so long that it was left."""
        self._attempt_s = self.clock.now_s()
        try:
            opened = self._open(open_unredirected)
        finally:
            with self._changed:
                if not self._is_left():  # then the attempt is another thread's
                    self._attempt_s = None
        with self._changed:
            is_left = self._is_left()
            if not is_left:
                self._warnings += [each for each in opened.warnings if each not in self._warnings]
                self._heard_s, self._num_failed = self.clock.now_s(), 0
                self._is_opening = False
                self._changed.notify_all()  # a caller again looks when the source stalls
        if is_left:
            opened.reader.release()
            return None
        return opened.reader

    def _check_still_live(self, reader: LiveReader) -> None:
        if isinstance(self._source, StreamAddress) and is_recording(reader):
            reader.release()
            raise SourceError(
                f"{self._name} has become a recording, which would start again from its "
                "beginning; run again to watch it"
            )

    def _num_hung(self) -> int:
        """Threads left in a read or an opening that has not returned yet."""
        with self._changed:
            self._hung = [thread for thread in self._hung if thread.is_alive()]
            return len(self._hung)

    def _begin_outage(self, lost: Loss) -> Outage:
        """The present outage, which goes on until a picture comes; reported when it begins."""
        if self._outage is None:
            now_s = self.clock.now_s()
            self._outage = Outage(lost.reason, now_s)
            with self._changed:
                event = LostEvent(self._queue.stream_s(now_s), lost.reason)
                self._events.append(self._stamped(event))
                self._changed.notify_all()
        return self._outage

    def _ended(self) -> Loss | None:
        """None for a source that may end by itself."""
        num_captured = self._queue.num_captured
        if self._policy.is_finite and num_captured:
            return None
        return Loss(
            f"{self._name} ended after {num_captured} frames ({self._num_failed} reads in a row "
            "failed)",
            f"a live source has no end of its own: {self._source.advice}; {RECONNECT_ADVICE}",
        )

    def _stalled(self, now_s: float) -> Loss:
        loss = stalled(
            self._name,
            now_s - self._heard_s,
            self._policy,
            num_frames=self._queue.num_captured,
            num_failed=self._num_failed,
        )
        return replace(loss, advice=f"{loss.advice}; {RECONNECT_ADVICE}")


def _converted(reader: LiveReader) -> Image | None:
    """The picture grabbed last, None if it cannot be converted."""
    try:
        is_picture, image = reader.retrieve()
    except cv2.error:  # a damaged picture: some decoders raise
        return None
    return cast(Image, image) if is_picture and image.size else None
