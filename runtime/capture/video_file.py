"""The frames of a video file at the model's rate, on the clock of its timestamps.

Each grid instant k / fps gets the first frame at or after it, so 29.97 frames/s never drift and
nothing is dropped.
"""

import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import cv2

from mod_edge.errors import SourceError
from mod_edge.runtime.capture.file_header import HEADER_BYTES, states_rate
from mod_edge.runtime.capture.frame_clock import FrameClock
from mod_edge.runtime.capture.opencv import (
    codec_of,
    container_s,
    open_file,
    pixel_aspect,
    start_s,
    with_square_pixels,
)
from mod_edge.runtime.capture.redaction import without_credentials
from mod_edge.runtime.capture.source import (
    FILE,
    CapturePolicy,
    Frame,
    Image,
    check_pace,
    stalled,
)

ROUNDING_S = 0.001  # Matroska and FLV round timestamps to milliseconds
# A header's frame count is often duration x rate: rounded, or the length of the audio, and an
# average where the rate varies. A video counts as truncated only if it misses more than both.
HEADER_SLACK_S = 1.0
HEADER_SLACK_RATIO = 0.02


class VideoFile(AbstractContextManager["VideoFile"]):
    """The frames of a video file at `fps`, by timestamp; opened at once, closed by `with`.

    A video slower than `fps` repeats its frames, to keep the stream's clock, for at most
    `FrameClock.max_frame_s`: longer gaps between two frames are skipped with a warning. Frames
    between two instants are decoded, as codecs need, but not converted to images.

    Args:
        path: the file, or the address that `opened` reads.
        fps: frames/s of the grid.
        max_frames: end after this many frames.
        policy: when the file has stalled or ended.
        opened: a recording that `open_source` has opened by its address; None opens the file.

    Attributes:
        is_live: False.
        is_ready: True; it is read on demand, also over a network.
        num_frames: returned so far.
        num_dropped: always 0.

    Raises:
        SourceError: the file does not exist or cannot be read as a video; while iterating, a
            recording stalled or ended early.
        ConfigError: fps or max_frames is not positive.
    """

    is_live = False
    is_ready = True
    num_dropped = 0

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fps: float,
        max_frames: int | None = None,
        policy: CapturePolicy = FILE,
        opened: cv2.VideoCapture | None = None,
    ) -> None:
        check_pace(fps, max_frames)
        self.num_frames = 0
        self._path = (
            path if opened is None else without_credentials(str(path))
        )  # as messages name it
        self._fps = fps
        self._max_frames = max_frames
        self._policy = policy
        self._container_s, self._states_rate = 0.0, True  # as far as is known of an address
        if opened is None:
            opened = open_file(Path(path))
            self._container_s = container_s(opened, Path(path))
            with Path(path).open("rb") as file:
                self._states_rate = states_rate(file.read(HEADER_BYTES))
        self._capture = opened
        opened.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # the default, but not of OpenCV 4.11
        self._clock = FrameClock(self._capture.get(cv2.CAP_PROP_FPS))
        self._pixel_aspect = pixel_aspect(self._capture)
        self._start_s = 0.0  # of the video on the file's own clock
        self._num_grabbed = 0
        self._num_damaged = 0
        self._end_warnings: list[str] = []
        self._image: Image | None = None  # of the frame last grabbed, once converted

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        if not self._capture.isOpened():
            raise StopIteration
        if self.num_frames == self._max_frames:
            self.close()
            raise StopIteration
        instant_s = self.num_frames / self._fps
        while self._clock.time_s < instant_s - ROUNDING_S or not self._retrieve():
            if not self._grab():
                self._check_end()
                self.close()
                raise StopIteration
        assert self._image is not None
        frame = Frame(self.num_frames, instant_s, self._image)
        self.num_frames += 1
        return frame

    @property
    def warnings(self) -> list[str]:
        """Sentences about an early end, damaged packets, an assumed frame rate and gaps, so far."""
        warnings = list(self._end_warnings)
        if self._num_damaged:
            warnings.append(
                f"{self._path} is damaged: {self._num_damaged} packets could not be decoded and "
                "were skipped; times are still those of the video"
            )
        clock = self._clock
        if self._num_grabbed > 1 and clock.step_s and not self._states_rate:
            warnings.append(
                f"{self._path} has neither timestamps nor a frame rate: "
                f"{1 / clock.step_s:g} frames/s were assumed; if it was recorded at FPS frames/s, "
                "rewrite it with: ffmpeg -r FPS -i VIDEO -c:v libx264 fixed.mp4"
            )
        if clock.num_gaps:
            gaps = "1 gap" if clock.num_gaps == 1 else f"{clock.num_gaps} gaps"
            warnings.append(
                f"{self._path} has {gaps} of more than {clock.max_frame_s:g} s between two frames, "
                f"as joined recordings have: {clock.skipped_s:,.1f} s were skipped, and later "
                "times are earlier than the video's by as much"
            )
        return warnings

    def close(self) -> None:
        """Release the file."""
        self._capture.release()

    def _grab(self) -> bool:
        """Step to the next frame that can be decoded; False at the end."""
        for num_failed in range(self._policy.max_failed_reads):
            asked_s = time.monotonic()
            is_grabbed = self._capture.grab()
            waited_s = time.monotonic() - asked_s
            if waited_s >= self._policy.stall_s:
                raise stalled(
                    str(self._path), waited_s, self._policy, num_frames=self._num_grabbed
                ).error()
            if is_grabbed:
                self._image = None
                self._num_grabbed += 1
                if self._num_grabbed == 1:
                    self._start_s = start_s(self._capture)
                self._num_damaged += num_failed
                self._clock.advance(self._capture.get(cv2.CAP_PROP_POS_MSEC))
                return True
        return False

    def _retrieve(self) -> bool:
        """Convert the frame last grabbed, if that is not done yet; False if it has no picture."""
        if self._image is None:
            is_picture, image = self._capture.retrieve()
            if is_picture and image.size:
                self._image = with_square_pixels(cast(Image, image), self._pixel_aspect)
        return self._image is not None

    def _check_end(self) -> None:
        """Compare what was read with what the file's header says."""
        if self.num_frames == 0:
            raise SourceError(
                f"{self._path} opens as a video but none of its frames can be decoded "
                f"(codec {codec_of(self._capture)}); it may be truncated or need a codec that "
                "this OpenCV lacks; rewrite it with: ffmpeg -i VIDEO -c:v libx264 fixed.mp4"
            )
        step_s = self._clock.step_s or 0.0
        if self._num_grabbed == 1 and self._container_s > step_s + HEADER_SLACK_S:
            self._end_warnings.append(
                f"{self._path} gave one picture but lasts {self._container_s:.0f} s: its first "
                "video track, the one that OpenCV reads, is probably a thumbnail; ffprobe lists "
                "the tracks, and this takes the second one: ffmpeg -i VIDEO -map 0:v:1 "
                "-c copy fixed.mp4"
            )
            return
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        if not step_s or count <= 0:
            return
        last_s = max(step_s, self._clock.interval_s)  # FFmpeg guesses too high a rate of slow files
        read_s = self._clock.time_s + self._clock.skipped_s + last_s
        header_s = count * step_s
        # A count that is the container's length times the rate starts at the file's zero. One that
        # is shorter than the start (mp4) is of the frames.
        left_out_s = self._start_s if self._start_s < header_s else 0.0
        slack_s = max(HEADER_SLACK_S, HEADER_SLACK_RATIO * header_s)
        if self._num_grabbed < count and left_out_s + read_s < header_s - slack_s:
            early = (
                f"{self._path} ended early: read {self._num_grabbed} of {count:.0f} frames, "
                f"{read_s:.1f} s of {header_s:.1f} s"
            )
            if math.isfinite(self._policy.stall_s):  # more likely the connection than the file
                raise SourceError(
                    f"{early}; the connection was lost, or its sound is longer than its pictures: "
                    "download it and run again"
                )
            self._end_warnings.append(
                f"{early}; the file may be truncated, or its sound longer than its pictures"
            )
