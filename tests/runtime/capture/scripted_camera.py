"""A stand-in for cv2.VideoCapture that plays what a test says, on a clock that the test moves.

No device and no server: what V4L2 does when a camera fails is played from a script.
"""

import queue
import threading
from datetime import datetime, timedelta, timezone

import cv2
import numpy as np

from mod_edge.runtime.capture.clock import Clock
from mod_edge.runtime.capture.live_capture import LiveCapture
from mod_edge.runtime.capture.source import LIVE
from tests.runtime.capture.numbered_video import picture_of

NOON = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)
TURN_S = 0.005  # of real time, for the other thread
LONGEST_S = 10.0  # of real time, until a test that hangs fails


class FakeClock(Clock):
    """Moves when a test says so; whoever waits finds the whole time passed at once.

    Attributes:
        passed_s: since the start.
        set_by_s: by which somebody has set the time of day.
    """

    def __init__(self):
        self.passed_s = 0.0
        self.set_by_s = 0.0

    def now_s(self):
        return 100.0 + self.passed_s

    def utc(self):
        return NOON + timedelta(seconds=self.passed_s + self.set_by_s)

    def wait(self, changed, timeout_s):
        # Lets the other thread have the lock, or the two would wait for each other for ever.
        if not changed.wait(TURN_S):
            self.passed_s += timeout_s


class ScriptedCamera:
    """Delivers what `sends` and `fails` say, one read at a time; each returns once it is read.

    Attributes:
        clock: of the captures.
        is_there: whether it can be opened.
        num_opened: attempts to open it, failed ones included.
        num_converted: pictures that were converted.
    """

    def __init__(self):
        self.clock = FakeClock()
        self.is_there = True
        self.num_opened = self.num_converted = self.num_frames = 0
        self._answers = queue.Queue()
        self._is_waiting = threading.Semaphore(0)  # the reader, for the next answer
        self._is_over = False
        self._hangs, self._has_hung = threading.Event(), threading.Event()
        self._lives = []

    def live(self, source=0, *, fps=2.0, policy=LIVE, max_frames=None):
        """A `LiveCapture` of this camera that waits for its first picture."""
        live = LiveCapture(source, fps=fps, policy=policy, max_frames=max_frames, clock=self.clock)
        self._lives.append(live)
        self.await_reader()
        return live

    def sends(self, *images, every_s):
        """Pictures, or numbers of pictures, each after `every_s` seconds."""
        for image in images:
            self._answer(picture_of(image) if isinstance(image, int) else image, every_s)

    def fails(self, num_reads=1, *, every_s=0.0):
        """Reads without a picture, each after `every_s` seconds."""
        for _ in range(num_reads):
            self._answer(None, every_s)

    def hangs(self):
        """A read that does not return before the camera is closed."""
        self._answers.put(self._hangs)
        assert self._has_hung.wait(LONGEST_S)  # or a second reader might take it

    def breaks(self, error):
        """A read that raises `error`."""
        self._answer(error, 0.0)

    def close(self):
        """Let every read fail at once, and close the captures."""
        self._is_over = True
        self._hangs.set()
        self._answers.put(None)
        for live in self._lives:
            live.close()

    def open(self, *_arguments):
        """What cv2.VideoCapture() gives."""
        self.num_opened += 1
        return ScriptedCapture(self)

    def next_answer(self):
        if self._is_over:
            return None
        self._is_waiting.release()
        answer = self._answers.get()
        if answer is self._hangs:
            self._has_hung.set()
            self._hangs.wait(LONGEST_S)
            return None
        return answer

    def _answer(self, answer, after_s):
        self.clock.passed_s += after_s
        self._answers.put(answer)
        self.await_reader()

    def await_reader(self):
        """Wait until the reader asks again or has ended."""
        reader = self._lives[-1]._reading.thread
        for _ in range(round(LONGEST_S / 0.01)):
            if self._is_waiting.acquire(timeout=0.01) or not reader.is_alive():
                return
        raise AssertionError("the reader neither reads nor ends")


class ScriptedCapture:
    """One opening of a `ScriptedCamera`."""

    def __init__(self, camera):
        self._camera = camera
        self._is_open = camera.is_there
        self._image = None

    def isOpened(self):  # noqa: N802 - OpenCV's name
        return self._is_open

    def get(self, key):
        return self._camera.num_frames if key == cv2.CAP_PROP_FRAME_COUNT else 0.0

    def grab(self):
        self._image = self._camera.next_answer()
        if isinstance(self._image, Exception):
            raise self._image
        return self._image is not None

    def retrieve(self):
        self._camera.num_converted += 1
        is_bad = self._image.size == 0
        return not is_bad, None if is_bad else self._image.copy()

    def release(self):
        self._is_open = False


NO_PICTURE = np.zeros(0, np.uint8)  # grabbed, but cannot be converted
