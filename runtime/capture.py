"""Frames at the model's rate, from a video file or from a live camera or stream.

A file is read on the clock of its timestamps: for every grid instant k / fps the first frame at or
after it, so that 29.97 frames/s never drift, and nothing is dropped. A live source is read as fast
as it delivers and only its newest frame is kept: what the model sees is never older than one camera
frame, and the grid instants that it was too slow for are counted.
"""

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from mod_edge.errors import ConfigError, SourceError
from mod_edge.profiles import Camera
from mod_edge.runtime.frame_clock import FrameClock
from mod_edge.runtime.sources import (
    ask_camera,
    is_address,
    is_pipeline,
    name_of,
    open_file,
    open_live,
)

Image = NDArray[np.uint8]

ROUNDING_S = 0.001  # Matroska and FLV round timestamps to milliseconds
# A damaged packet makes grab() fail as the end of the file does. 1000 failures at the end take
# 1-20 ms; a minute of H.264 with 7 % overwritten gives 544 of its 600 frames instead of 226.
MAX_FAILED_GRABS = 1000
# A header's count is often duration x rate: rounded, or as long as the sound, and an average where
# the rate varies. So a video counts as cut short only beyond both of these.
HEADER_SLACK_S = 1.0
HEADER_SLACK_RATIO = 0.02

READ_TIMEOUT_S = 5.0
# What FFmpeg read to probe a stream (3 frames of MJPEG, up to seconds of RTSP) comes out at once
# and is old; this long of reading leaves it behind before the first frame is handed out.
SETTLE_S = 0.25
JOIN_MARGIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame for the model.

    Attributes:
        index: counts the frames handed out, from 0.
        time_s: its grid instant: seconds of video (file) or since the first frame (live).
        image: (H, W, 3) uint8 BGR. Two frames of a slow video may share it: do not write to it.
    """

    index: int
    time_s: float
    image: Image


class VideoFile(AbstractContextManager["VideoFile"]):
    """The frames of a video file at `fps`, by timestamp; opened at once, closed by `with`.

    A video slower than `fps` repeats its frames, so that the stream's clock holds. Frames between
    two instants are decoded, as codecs need, but never converted to an image.

    Args:
        path: the file.
        fps: frames/s of the grid.
        max_frames: end after so many frames.

    Attributes:
        is_live: False.
        num_frames: handed out so far.
        num_dropped: always 0.
        warnings: sentences about a file that ended early or is damaged; complete at the end.

    Raises:
        SourceError: there is no such file, or it is not a video that can be read.
        ConfigError: fps or max_frames is not positive.
    """

    is_live = False
    num_dropped = 0

    def __init__(
        self, path: str | os.PathLike[str], *, fps: float, max_frames: int | None = None
    ) -> None:
        _check_pace(fps, max_frames)
        self.num_frames = 0
        self.warnings: list[str] = []
        self._path = Path(path)
        self._fps = fps
        self._max_frames = max_frames
        self._capture = open_file(self._path)
        self._clock = FrameClock(self._capture.get(cv2.CAP_PROP_FPS))
        self._num_grabbed = 0
        self._num_damaged = 0
        self._image: Image | None = None  # of the frame last grabbed, once it was wanted

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        if self.num_frames == self._max_frames or not self._capture.isOpened():
            raise StopIteration
        instant_s = self.num_frames / self._fps
        while self._clock.time_s < instant_s - ROUNDING_S or not self._retrieve():
            if not self._grab():
                self._finish()
                raise StopIteration
        assert self._image is not None
        frame = Frame(self.num_frames, instant_s, self._image)
        self.num_frames += 1
        return frame

    def close(self) -> None:
        """Release the file."""
        self._capture.release()

    def _grab(self) -> bool:
        """Step to the next frame that can be decoded; False at the end."""
        for num_failed in range(MAX_FAILED_GRABS):
            if self._capture.grab():
                self._image = None
                self._num_grabbed += 1
                self._num_damaged += num_failed
                self._clock.advance(self._capture.get(cv2.CAP_PROP_POS_MSEC))
                return True
        return False

    def _retrieve(self) -> bool:
        """Convert the frame last grabbed, unless that is done; False if it has no picture."""
        if self._image is None:
            is_picture, image = self._capture.retrieve()
            self._image = cast(Image, image) if is_picture and image.size else None
        return self._image is not None

    def _finish(self) -> None:
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.close()
        if self.num_frames == 0:
            raise SourceError(
                f"{self._path} opens as a video but not one frame of it can be decoded; "
                "it may be truncated or need a codec that this OpenCV lacks"
            )
        if self._num_damaged:
            self.warnings.append(
                f"{self._path} is damaged: {self._num_damaged} of its packets could not be decoded "
                "and were left out; times are still those of the video"
            )
        if self._clock.step_s is None or count <= 0:
            return
        read_s = self._clock.time_s + self._clock.step_s
        header_s = count * self._clock.step_s
        slack_s = max(HEADER_SLACK_S, HEADER_SLACK_RATIO * header_s)
        if self._num_grabbed < count and read_s < header_s - slack_s:
            self.warnings.append(
                f"{self._path} ended early: read {self._num_grabbed} of {count:.0f} frames, "
                f"{read_s:.1f} s of {header_s:.1f} s; the file may be truncated"
            )


class LiveCapture(AbstractContextManager["LiveCapture"]):
    """The newest frame of a camera or stream at each instant of the `fps` grid.

    A thread reads as fast as the source delivers and keeps one frame. The same frame is never
    handed out twice: a source slower than `fps` gives fewer frames, each with its own time.

    Args:
        source: camera number, stream address (rtsp://, http://) or GStreamer pipeline.
        fps: frames/s of the grid, on time.monotonic().
        max_frames: end after so many frames.
        read_timeout_s: longest wait for a frame.
        wanted: picture size and rate to ask a camera for; None leaves it as it is.

    Attributes:
        is_live: True.
        num_frames: handed out so far.
        num_dropped: grid instants that passed while the caller was busy, so far.
        warnings: sentences about a camera that gives something else, and a stream that ended.

    Raises:
        SourceError: the source cannot be opened; while iterating: it stopped delivering.
        ConfigError: fps, max_frames or read_timeout_s is not positive.
    """

    is_live = True

    def __init__(
        self,
        source: int | str,
        *,
        fps: float,
        max_frames: int | None = None,
        read_timeout_s: float = READ_TIMEOUT_S,
        wanted: Camera | None = None,
    ) -> None:
        _check_pace(fps, max_frames)
        if not 0 < read_timeout_s < math.inf:
            raise ConfigError(f"read_timeout_s={read_timeout_s}: wanted more than 0 seconds")
        self.num_frames = 0
        self.num_dropped = 0
        self.warnings: list[str] = []
        self._name = name_of(source)
        self._can_end = is_address(source)
        self._fps = fps
        self._max_frames = max_frames
        self._read_timeout_s = read_timeout_s
        self._capture = open_live(source, self._name, read_timeout_s)
        if wanted is not None and isinstance(source, int):
            self.warnings += ask_camera(self._capture, self._name, wanted)

        self._changed = threading.Condition()  # guards what both threads touch: these five
        self._newest: Image | None = None
        self._num_arrived = 0
        self._arrived_s = time.monotonic()
        self._has_ended = False
        self._failure: SourceError | None = None

        self._is_closing = False
        self._is_finished = False
        self._num_seen = 0  # number of the arrival that was handed out last
        self._start_s = -math.inf
        self._due = 0  # the k of the next grid instant k / fps
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
            return self._take_newest()

    def close(self) -> None:
        """Stop reading and wait for the thread, at most the read timeout."""
        self._is_closing = True
        # V4L2 sits out a time limit of its own in a silent camera: the thread is a daemon, leave it
        self._reader.join(self._read_timeout_s + JOIN_MARGIN_S)

    def _read(self) -> None:
        """Keep the newest frame until the source ends, fails or is closed; the thread's body."""
        failure: SourceError | None = None
        try:
            while not self._is_closing:
                asked_s = time.monotonic()
                is_picture, image = self._capture.read()
                if not is_picture or image.size == 0:
                    failure = self._reason_to_stop(time.monotonic() - asked_s)
                    break
                with self._changed:
                    self._newest = cast(Image, image)
                    self._num_arrived += 1
                    self._arrived_s = time.monotonic()
                    self._changed.notify_all()
        except Exception as exc:  # raised again in the caller's thread, by _finish()
            failure = SourceError(f"{self._name} could not be read further: {exc}")
            failure.__cause__ = exc
        finally:
            self._capture.release()
            with self._changed:  # here, so that a waiting caller wakes whatever happened
                self._failure = failure
                self._has_ended = True
                self._changed.notify_all()

    def _reason_to_stop(self, waited_s: float) -> SourceError | None:
        """None for a stream that was closed by its server."""
        if waited_s >= 0.9 * self._read_timeout_s:
            return self._stalled(waited_s)
        if self._can_end and self._num_arrived:
            return None
        return SourceError(
            f"{self._name} stopped delivering after {self._num_arrived} frames; check its cable "
            "and power, and that no other program took it, then run again"
        )

    def _stalled(self, silent_s: float) -> SourceError:
        return SourceError(
            f"{self._name} delivered no frame for {silent_s:.1f} s (allowed: "
            f"{self._read_timeout_s:g} s) after {self._num_arrived} frames; check that it is "
            "powered and reachable, then run again"
        )

    def _wait_for_first_frame(self) -> None:
        self._wait_for_new_frame()
        self._changed.wait_for(lambda: self._has_ended, SETTLE_S)
        self._start_s = time.monotonic()

    def _wait_for_instant(self) -> None:
        """Sleep until the next instant that has not passed; count those that have."""
        passed = int((time.monotonic() - self._start_s) * self._fps)
        if passed > self._due:  # the newest passed instant is served now, not dropped
            self.num_dropped += passed - self._due
            self._due = passed
        due_s = self._start_s + self._due / self._fps
        while (left_s := due_s - time.monotonic()) > 0:
            if self._has_ended and self._num_arrived == self._num_seen:
                return
            self._changed.wait(left_s)

    def _wait_for_new_frame(self) -> bool:
        """False when the source has ended; a frame that arrived before comes first."""
        since_s = time.monotonic()
        while self._num_arrived == self._num_seen:
            if self._has_ended:
                return False
            now_s = time.monotonic()
            left_s = max(self._arrived_s, since_s) + self._read_timeout_s - now_s
            if left_s <= 0:
                raise self._stalled(now_s - self._arrived_s)
            self._changed.wait(left_s)
        return True

    def _take_newest(self) -> Frame:
        assert self._newest is not None
        # a frame that was waited for may belong to a later instant: the source's delay, not a drop
        instant = max(self._due, int((self._arrived_s - self._start_s) * self._fps))
        frame = Frame(self.num_frames, instant / self._fps, self._newest)
        self.num_frames += 1
        self._num_seen = self._num_arrived
        self._due = instant + 1
        return frame

    def _finish(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._is_finished:
            self._is_finished = True
            lasted_s = self._arrived_s - self._start_s
            self.warnings.append(
                f"{self._name} ended after {max(lasted_s, 0):.1f} s; {self.num_frames} frames used"
            )


def open_source(
    path: str | None,
    camera: int | None,
    *,
    fps: float,
    max_frames: int | None = None,
    wanted: Camera | None = None,
) -> VideoFile | LiveCapture:
    """What `path` names (file, stream address, pipeline), or the camera of this number.

    One of the two is None; `wanted` is what a camera is asked for.
    """
    if camera is not None:
        return LiveCapture(camera, fps=fps, max_frames=max_frames, wanted=wanted)
    assert path is not None
    if is_pipeline(path) or is_address(path):
        return LiveCapture(path, fps=fps, max_frames=max_frames)
    return VideoFile(path, fps=fps, max_frames=max_frames)


def _check_pace(fps: float, max_frames: int | None) -> None:
    if not 0 < fps < math.inf:
        raise ConfigError(f"fps={fps}: wanted more than 0 frames a second")
    if max_frames is not None and max_frames < 1:
        raise ConfigError(f"max_frames={max_frames}: wanted 1 or more, or none for all")
