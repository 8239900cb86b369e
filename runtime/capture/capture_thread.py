"""The thread that reads a live source into a queue, and opens it again if it was lost.

It grabs pictures as fast as the source delivers and converts only those that are kept.
"""

import math
from collections import deque
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
from mod_edge.runtime.capture.source import CaptureCounts, CapturePolicy, Image, Loss, stalled
from mod_edge.runtime.capture.source_name import LiveName, StreamAddress
from mod_edge.runtime.events import Event

RETRY_S = 0.02  # between failed reads: without it a core is busy until the source counts as ended
# After the stall, until a read that should have timed out is left to itself.
HANG_MARGIN_S = 1.0
HUNG_OPEN_S = 40.0  # the same for an opening: GStreamer's own time-out is 30 s
MAX_HUNG = 8  # threads and connections that hang, until no more are opened
MAX_EVENTS = 1000  # that wait for a caller who never takes them
RECONNECT_ADVICE = "--reconnect 60s opens a lost source again"
PAUSED = "the source paused, or this process was suspended"


class CaptureThread:
    """Reads a source until it ends, is lost for good, or is wanted no more.

    Hold `changed` for everything but `counts`, `troubles`, `end` and `join`.

    Args:
        source: what is read.
        opened: the source, already open; None opens it.
        fps: frames/s of the queue's grid.
        max_frames: the thread ends once the caller has taken this many; None for no limit.
        policy: of the source.
        wanted: see `open_live`.
        clock: that pictures and waits are timed with.

    Attributes:
        changed: notified when a picture or an event comes, and at the end.
        queue: the pictures that wait.
        events: what happened to the source and was not taken yet.
        warnings: of the openings.
        heard_s: when the last picture came, or the source was opened.
        has_ended: whether no more pictures come.
        failure: why, if that is an error.
        thread: that reads now; another one takes its place when it hangs.

    Raises:
        SourceError: the source cannot be opened.
    """

    def __init__(
        self,
        source: LiveName,
        opened: OpenedLive | None,
        *,
        fps: float,
        max_frames: int | None,
        policy: CapturePolicy,
        wanted: Camera | None,
        clock: Clock,
    ) -> None:
        self._source = source
        self._name = source.name
        self._max_frames = max_frames
        self._policy = policy
        self._wanted = wanted
        self.clock = clock
        if opened is None:
            opened = self._open(open_quietly)
        self.warnings = list(opened.warnings)

        self.changed = Condition()
        self.queue = FrameQueue(policy.keep, fps=fps, settle_s=policy.settle_s)
        self.events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self.heard_s = clock.now_s()
        self.has_ended = False
        self.failure: SourceError | None = None
        self._num_failed = 0  # reads in a row
        self._num_skipped = 0  # failed reads between pictures
        self._outage: Outage | None = None
        self._silent_s: float | None = None  # since when, in a gap; the reading thread's
        self._num_gaps, self._gaps_s = 0, 0.0

        self._watch = FrozenWatch(policy.frozen_after_s)
        self._size: tuple[int, int] | None = None  # width and height of the last picture
        self._is_closing = False
        self._is_opening = False  # again
        self._attempt_s: float | None = None  # when the present attempt to open it began
        self._hung: list[Thread] = []  # left in a read or an opening
        self._start(opened.reader, None)

    # ---- the caller's side ----

    def is_over(self) -> bool:
        """Whether no more frames are wanted."""
        return self._is_closing or self.queue.num_taken == self._max_frames

    @property
    def counts(self) -> CaptureCounts:
        """What became of every picture so far."""
        with self.changed:
            return self.queue.counts(self._num_skipped)

    def troubles(self) -> list[str]:
        """Sentences about bad pictures, gaps and freezes, so far."""
        sentences: list[str] = []
        if self._num_skipped:
            is_one = self._num_skipped == 1
            reads, were = ("1 read", "was") if is_one else (f"{self._num_skipped} reads", "were")
            sentences.append(f"{self._name}: {reads} gave no picture and {were} skipped")
        if self._num_gaps:
            gaps = "1 gap" if self._num_gaps == 1 else f"{self._num_gaps} gaps"
            sentences.append(
                f"{self._name}: {gaps} without pictures, {self._gaps_s:.1f} s together"
            )
        if freezes := self._watch.num_freezes:
            times = "once" if freezes == 1 else f"{freezes} times"
            sentences.append(f"{self._name}: the picture froze {times}")
        return sentences

    def stalls_s(self, asked_s: float) -> float:
        """When the source counts as stalled, or its reader as hung, if no picture comes.

        Args:
            asked_s: when the caller began to wait.
        """
        if self._is_opening:
            return math.inf if self._attempt_s is None else self._attempt_s + HUNG_OPEN_S
        margin_s = HANG_MARGIN_S if self._policy.reconnect_s else 0.0
        return max(self.heard_s, asked_s) + self._policy.stall_s + margin_s

    def stalled(self, now_s: float) -> Loss:
        """The loss of a source that has stalled."""
        loss = stalled(
            self._name,
            now_s - self.heard_s,
            self._policy,
            num_frames=self.queue.num_captured,
            num_failed=self._num_failed,
        )
        return replace(loss, advice=f"{loss.advice}; {RECONNECT_ADVICE}")

    def leave_hung(self, now_s: float) -> None:
        """Open the source again in another thread, because a read or an opening does not return.

        Only the caller can see that. FFmpeg's time-out does not end a read of bytes that hold no
        picture, and devices have no time-out for opening. The old thread releases its reader when
        it returns.
        """
        lost, self._is_opening = self.stalled(now_s), True
        if self._attempt_s is not None:
            reason = f"opening {self._name} took longer than {HUNG_OPEN_S:g} s"
            lost, self._attempt_s = replace(lost, reason=reason), None
        self._hung.append(self.thread)
        self._start(None, lost)

    def end(self) -> None:
        """Wake the caller and end the reading; returns at once."""
        with self.changed:
            self._is_closing = True
            self.changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the thread, at most so long: a read that hangs cannot be ended."""
        self.thread.join(timeout_s)

    def _start(self, reader: LiveReader | None, lost: Loss | None) -> None:
        self.thread = Thread(
            target=self._read, args=(reader, lost), name="mod-edge capture", daemon=True
        )
        self.thread.start()

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
        except SourceError as exc:  # raised again in the caller's thread, by `LiveCapture`
            failure = exc
        except Exception as exc:
            reason = without_credentials(str(exc))
            failure = SourceError(f"{self._name} cannot be read any more: {reason}")
            failure.__cause__ = exc
        finally:
            with self.changed:  # in finally, so that a waiting caller always wakes
                if not self._is_left():
                    self.failure = failure
                    self.has_ended = True
                    self.changed.notify_all()

    def _is_left(self) -> bool:
        """Whether this thread's read or opening hung, so that another thread reads."""
        return current_thread() is not self.thread

    def _queue_pictures(self, reader: LiveReader) -> Loss | None:
        """Queue pictures until no more come; returns why, None if that is no failure."""
        while not self.is_over():
            is_picture = reader.grab()
            now_s, at = self.clock.now_s(), self.clock.utc()
            if self._is_left():
                return None
            # Before the picture is looked at: one that a timed-out grab() brings was held back by
            # the decoder and is as old as the silence.
            if now_s - self.heard_s >= self._policy.stall_s:
                return self.stalled(now_s)
            if is_picture and self._is_used(reader, now_s, at):
                self.heard_s = now_s
                continue
            self._num_failed += 1
            if self._num_failed == self._policy.max_failed_reads:
                return self._ended()
            self._pause(RETRY_S)
        return None

    def _is_used(self, reader: LiveReader, now_s: float, at: datetime) -> bool:
        """Discard or queue the picture just grabbed; False if it cannot be converted."""
        image: Image | None = None
        with self.changed:
            if self._silent_s is None and (self._outage or self.queue.is_gap(now_s)):
                self._silent_s = now_s - self.queue.silent_s(now_s)
            if self._silent_s is not None:
                self.queue.settle(now_s)
            is_kept = self.queue.offer(now_s)
        if is_kept and (image := _converted(reader)) is None:
            return False
        events: list[Event] = []
        if image is not None:
            events = self._gap_until(now_s) + self._seen_in(image, now_s)
        with self.changed:
            self._num_skipped += self._num_failed
            self._num_failed = 0
            if image is not None:
                self.events += events
                self.queue.put(image, at)
                self.changed.notify_all()
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
        event = GapEvent(self.queue.stream_s(now_s), round(gap_s, 3), num_attempts, reason)
        return [self._stamped(event)]

    def _seen_in(self, image: Image, now_s: float) -> list[Event]:
        """What a new picture shows: another size, a frozen camera."""
        events: list[Event] = []
        time_s = self.queue.stream_s(now_s)
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
        with self.changed:
            if not self.is_over():
                self.clock.wait(self.changed, wait_s)

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
        with self.changed:
            if self.is_over() or self._is_left():
                return None
            if not self._policy.reconnect_s:
                raise lost.error()
            self._is_opening = True
        outage = self._begin_outage(lost)
        last = lost.reason
        while (left_s := outage.since_s + self._policy.reconnect_s - self.clock.now_s()) > 0:
            self._pause(min(next(outage.delays_s), left_s))
            if self.is_over():
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
            with self.changed:
                if not self._is_left():  # then the attempt is another thread's
                    self._attempt_s = None
        with self.changed:
            is_left = self._is_left()
            if not is_left:
                self.warnings += [each for each in opened.warnings if each not in self.warnings]
                self.heard_s, self._num_failed = self.clock.now_s(), 0
                self._is_opening = False
                self.changed.notify_all()  # a caller again looks when the source stalls
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
        with self.changed:
            self._hung = [thread for thread in self._hung if thread.is_alive()]
            return len(self._hung)

    def _begin_outage(self, lost: Loss) -> Outage:
        """The present outage, which goes on until a picture comes; reported when it begins."""
        if self._outage is None:
            now_s = self.clock.now_s()
            self._outage = Outage(lost.reason, now_s)
            with self.changed:
                event = LostEvent(self.queue.stream_s(now_s), lost.reason)
                self.events.append(self._stamped(event))
                self.changed.notify_all()
        return self._outage

    def _ended(self) -> Loss | None:
        """None for a source that may end by itself."""
        num_captured = self.queue.num_captured
        if self._policy.is_finite and num_captured:
            return None
        return Loss(
            f"{self._name} ended after {num_captured} frames ({self._num_failed} reads in a row "
            "failed)",
            f"a live source has no end of its own: {self._source.advice}; {RECONNECT_ADVICE}",
        )


def _converted(reader: LiveReader) -> Image | None:
    """The picture grabbed last, None if it cannot be converted."""
    try:
        is_picture, image = reader.retrieve()
    except cv2.error:  # a damaged picture: some decoders raise
        return None
    return cast(Image, image) if is_picture and image.size else None
