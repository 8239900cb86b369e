"""The frames of a camera or a stream at the model's rate, as a policy keeps them."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import islice

from mod_edge.profiles import Camera
from mod_edge.runtime.capture.capture_thread import CaptureThread
from mod_edge.runtime.capture.clock import Clock
from mod_edge.runtime.capture.open_live import OpenedLive
from mod_edge.runtime.capture.source import (
    LIVE,
    CaptureCounts,
    CapturePolicy,
    Frame,
    check_live,
    check_pace,
)
from mod_edge.runtime.capture.source_name import LiveName, live_name
from mod_edge.runtime.events import Event

JOIN_MARGIN_S = 1.0
LONGEST_WAIT_S = 60.0  # of a caller, before it looks at the clock again


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
        named = live_name(source)
        check_live(named.name, policy)
        self.clock = clock or Clock()
        self._name = named.name
        self._policy = policy
        self._asked_s: float | None = None  # when the caller began to wait for the next frame
        self._end_warnings: list[str] = []
        self._reading = CaptureThread(
            named,
            opened,
            fps=fps,
            max_frames=max_frames,
            policy=policy,
            wanted=wanted,
            clock=self.clock,
        )

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        with self._reading.changed:
            while (frame := self._take(now_s := self.clock.now_s())) is None:
                if self._is_at_end(now_s):
                    raise StopIteration
                self._wait(now_s)
            return frame

    def take(self, most: int) -> list[Frame] | None:
        """The frames that come without waiting, at most `most`; None at the end.

        Raises:
            SourceError: as while iterating.
        """
        with self._reading.changed:
            now_s = self.clock.now_s()
            frames = list(islice(iter(lambda: self._take(now_s), None), most))
            return None if not frames and self._is_at_end(now_s) else frames

    def wait(self) -> None:
        """Return once `is_ready`."""
        with self._reading.changed:
            while not self._is_ready(now_s := self.clock.now_s()):
                self._wait(now_s)

    @property
    def is_ready(self) -> bool:
        """Whether the next frame, an event, the end or an error comes without waiting."""
        with self._reading.changed:
            now_s = self.clock.now_s()
            is_ready = self._is_ready(now_s)
            if not is_ready:
                self._note_waiting(now_s)
            return is_ready

    def take_events(self) -> list[Event]:
        """What happened to the source since the last call: gaps, sizes, frozen pictures.

        What happened after the oldest frame that waits comes once that frame is taken.
        """
        reading = self._reading
        with reading.changed:
            next_s = None if reading.is_over() else reading.queue.next_s(self.clock.now_s())
            until_s = math.inf if next_s is None else round(reading.queue.stream_s(next_s), 3)
            events: list[Event] = []
            while reading.events and reading.events[0].time_s <= until_s:
                events.append(reading.events.popleft())
        return events

    @property
    def num_waiting(self) -> int:
        """Frames that come without waiting."""
        reading = self._reading
        with reading.changed:
            if reading.is_over() or not reading.queue.is_ready(self.clock.now_s()):
                return 0
            return reading.queue.num_waiting

    @property
    def num_frames(self) -> int:
        """Frames returned so far."""
        return self._reading.queue.num_taken

    @property
    def num_dropped(self) -> int:
        """Frames at the model's rate dropped so far because the caller was too slow."""
        return self.counts.num_dropped

    @property
    def counts(self) -> CaptureCounts:
        """What became of every picture so far."""
        return self._reading.counts

    @property
    def warnings(self) -> list[str]:
        """Sentences about other settings, bad pictures, gaps and the end of the source, so far."""
        return [*self._reading.warnings, *self._end_warnings, *self._reading.troubles()]

    def end(self) -> None:
        """End the iteration and the reading, from any thread; returns at once."""
        self._reading.end()

    def close(self) -> None:
        """Stop reading and wait for the thread, at most as long as for a frame."""
        self.end()
        # With a silent camera V4L2 waits for its own timeout: the thread is a daemon, let it run
        self._reading.join(self._policy.stall_s + JOIN_MARGIN_S)

    # ---- with the lock ----

    def _take(self, now_s: float) -> Frame | None:
        frame = None if self._reading.is_over() else self._reading.queue.take(now_s)
        if frame is not None:
            self._asked_s = None
        return frame

    def _is_at_end(self, now_s: float) -> bool:
        """Whether the iteration ends, where no frame waits; raises the source's failure."""
        if self._reading.is_over():
            return True
        if self._reading.has_ended:
            if self._reading.failure is not None:
                raise self._reading.failure
            self._warn_of_end()
            return True
        if self._has_stalled(now_s):
            raise self._reading.stalled(now_s).error()
        return False

    def _is_ready(self, now_s: float) -> bool:
        reading = self._reading
        if reading.is_over() or reading.has_ended or reading.events:
            return True
        return reading.queue.is_ready(now_s) or self._has_stalled(now_s)

    def _has_stalled(self, now_s: float) -> bool:
        """Whether the caller waits for a source that stalled and is not opened again."""
        return not self._policy.reconnect_s and now_s >= self._stalls_s(now_s)

    def _stalls_s(self, now_s: float) -> float:
        return self._reading.stalls_s(now_s if self._asked_s is None else self._asked_s)

    def _note_waiting(self, now_s: float) -> None:
        """Remember since when the caller waits; a reader that hangs then is left."""
        if self._asked_s is None:
            self._asked_s = now_s
        if self._policy.reconnect_s and now_s >= self._stalls_s(now_s):
            self._reading.leave_hung(now_s)

    def _wait(self, now_s: float) -> None:
        """Wait for the other thread, for a picture to be settled, or for a stall."""
        self._note_waiting(now_s)
        wakes_s = min(self._stalls_s(now_s), now_s + LONGEST_WAIT_S)
        ready_s = self._reading.queue.ready_s()
        if ready_s is not None and ready_s > now_s:
            wakes_s = min(wakes_s, ready_s)
        self.clock.wait(self._reading.changed, max(0.0, wakes_s - now_s))

    def _warn_of_end(self) -> None:
        if not self._end_warnings:
            lasted_s = self._reading.queue.stream_s(self._reading.heard_s)
            self._end_warnings.append(
                f"{self._name} ended after {lasted_s:.1f} s; {self.num_frames} frames used"
            )
