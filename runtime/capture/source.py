"""The contract between a session and its source of frames."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mod_edge.errors import ConfigError, SourceError

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame for the model.

    Attributes:
        index: from 0, in the order of delivery.
        time_s: its grid instant: seconds of video (file) or since the first frame (live).
        image: (H, W, 3) uint8 BGR. Frames of a slow video may share one: do not write to it.
        captured_s: when it was captured, on `Clock.now_s`; None for a frame of a file.
        at: the same moment in UTC; None for a frame of a file.
    """

    index: int
    time_s: float
    image: Image
    captured_s: float | None = None
    at: datetime | None = None


@dataclass(frozen=True)
class Keep:
    """Which frames a source keeps for a reader that is slower than the stream.

    Attributes:
        kind: "newest" keeps the newest picture, "queue" the newest `num_frames` at the model's
            rate, "every" all frames of a file, which waits for its reader.
        num_frames: the most that wait for the reader; 1 unless it is a queue.
    """

    kind: Literal["newest", "every", "queue"]
    num_frames: int = 1

    def __post_init__(self) -> None:
        if self.num_frames < 1 or (self.kind != "queue" and self.num_frames != 1):
            raise ConfigError(
                f"{self.kind} with num_frames={self.num_frames}: wanted 1 or more for a queue, 1 "
                "otherwise"
            )

    def __str__(self) -> str:
        return f"queue:{self.num_frames}" if self.kind == "queue" else self.kind


NEWEST = Keep("newest")
EVERY = Keep("every")


def parse_keep(text: str) -> Keep:
    """The frames to keep that "newest", "every" or "queue:N" names.

    Raises:
        ConfigError: it is none of the three, or N is not 1 or more.
    """
    queue = re.fullmatch(r"queue:0*([1-9][0-9]{0,5})", text)
    if queue is not None:
        return Keep("queue", int(queue[1]))
    for keep in (NEWEST, EVERY):
        if text == str(keep):
            return keep
    raise ConfigError(
        f"cannot keep {text!r}: wanted newest, every, or queue:N with N frames, such as queue:8"
    )


@dataclass(frozen=True)
class CapturePolicy:
    """Which frames a source drops, and when it has stalled or ended.

    A stall, and the end of a source that is not finite, raise `SourceError` while iterating, unless
    the source is opened again. The end of a finite source ends the iteration.

    Attributes:
        keep: which frames wait for a slow reader.
        stall_s: longest wait for a picture before the source counts as stalled, in seconds.
        max_failed_reads: failed reads in a row after which the source has ended. OpenCV reports
            a picture that it cannot decode like the end.
        is_finite: whether it may end by itself; otherwise its end is an error.
        reconnect_s: how long to try to open a source again that was lost; 0 does not try, infinity
            never gives up.
        frozen_after_s: a picture whose bytes stay identical for longer has frozen.
        settle_s: pictures that arrive in this time after the first one, or after a gap, may have
            been buffered for long: only the newest of them is used.
    """

    keep: Keep
    stall_s: float
    max_failed_reads: int
    is_finite: bool
    reconnect_s: float = 0.0
    frozen_after_s: float = math.inf
    # FFmpeg reads 3 pictures of MJPEG, and up to seconds of RTSP, to probe a stream.
    settle_s: float = 0.25

    def __post_init__(self) -> None:
        for name in ("stall_s", "frozen_after_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}: wanted more than 0 seconds")
        for name in ("reconnect_s", "settle_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: wanted 0 seconds or more")
        if self.max_failed_reads < 1:
            raise ConfigError(f"max_failed_reads={self.max_failed_reads}, wanted at least 1")


# grab() fails at a damaged packet as it does at the end of the file. 1000 failures at the end take
# 1-20 ms; a minute of H.264 with 7 % overwritten gives 544 of its 600 frames instead of 226.
FILE = CapturePolicy(keep=EVERY, stall_s=math.inf, max_failed_reads=1000, is_finite=True)
# A camera, a stream or a pipeline. A bad picture costs one or two failed reads; after a server has
# closed the connection reads fail at once, and the 50 take a second.
LIVE = CapturePolicy(keep=NEWEST, stall_s=5.0, max_failed_reads=50, is_finite=False)
# A file that a server sends.
RECORDING = replace(FILE, stall_s=LIVE.stall_s)


@dataclass(frozen=True)
class CaptureCounts:
    """What became of every picture of a live source so far.

    num_captured = num_taken + num_discarded, at any time; the other counts say why one was
    discarded.

    Attributes:
        num_captured: pictures that arrived.
        num_taken: given to the reader.
        num_between: their instant of the model's rate already had its picture: the source is faster
            than the model's rate.
        num_dropped: from the queue, one for each instant of the model's rate that the reader was
            too slow for; the `num_dropped` of sources and events.
        num_settling: they arrived before the stream began or while it settled.
        num_stale: they had waited for too long, as in a suspended process.
        num_waiting: not taken yet; discarded if the stream ends now.
        num_skipped_reads: reads that gave no picture.
    """

    num_captured: int = 0
    num_taken: int = 0
    num_between: int = 0
    num_dropped: int = 0
    num_settling: int = 0
    num_stale: int = 0
    num_waiting: int = 0
    num_skipped_reads: int = 0
    num_discarded: int = field(init=False)

    def __post_init__(self) -> None:
        by_name = (
            self.num_between,
            self.num_dropped,
            self.num_settling,
            self.num_stale,
            self.num_waiting,
        )
        object.__setattr__(self, "num_discarded", sum(by_name))


def check_recorded(name: str, policy: CapturePolicy | None) -> None:
    """Check that a policy asks nothing of a file or a recording that only live sources have.

    Raises:
        ConfigError: it drops frames, opens the source again or looks for frozen pictures.
    """
    if policy is None or policy == replace(
        policy, keep=EVERY, reconnect_s=0, frozen_after_s=math.inf
    ):
        return
    raise ConfigError(
        f"{name} has an end, and every frame of it is used once: --keep newest, --keep queue:N, "
        "--reconnect and --frozen-after are for cameras and streams; omit them"
    )


def check_live(name: str, policy: CapturePolicy) -> None:
    """Check that a policy is one for a live source.

    Raises:
        ConfigError: it keeps every frame, or waits for ever.
    """
    if policy.keep == EVERY:
        raise ConfigError(
            f"{name} does not wait for the model, so every frame cannot be kept; "
            "keep newest, or queue:N with a length N"
        )
    if not math.isfinite(policy.stall_s):
        raise ConfigError(f"stall_s={policy.stall_s:g} for a live source: wanted a finite time")


class Source(Protocol):
    """A source of frames; iterated once, to its end.

    Attributes:
        is_live: whether frames arrive in real time; it is then a `LiveSource`.
    """

    is_live: bool

    @property
    def num_dropped(self) -> int:
        """Frames at the model's rate dropped so far because the caller was too slow."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether the next frame, the end or an error comes without waiting for a camera."""
        ...

    @property
    def warnings(self) -> list[str]:
        """For the user, one sentence each; complete at the end."""
        ...

    def __iter__(self) -> Iterator[Frame]:
        """The frames, in the order of their times.

        Raises:
            SourceError: the source failed or stalled while iterating.
        """
        ...


@dataclass(frozen=True)
class Loss:
    """Why a source delivers no more pictures, and what to do about it."""

    reason: str
    advice: str

    def error(self) -> SourceError:
        """The loss as an error."""
        return SourceError(f"{self.reason}; {self.advice}")


def stalled(
    name: str, silent_s: float, policy: CapturePolicy, *, num_frames: int, num_failed: int = 0
) -> Loss:
    """The loss of a source whose last picture came `silent_s` seconds ago.

    `num_frames` came before, and `num_failed` reads have failed since.
    """
    failed = f", {num_failed} reads failed" if num_failed else ""
    return Loss(
        f"{name} delivered no frame for {silent_s:.1f} s (allowed: {policy.stall_s:g} s{failed}) "
        f"after {num_frames} frames",
        "check that it is powered and reachable, then run again",
    )


def check_pace(fps: float, max_frames: int | None) -> None:
    """Check the frame rate and the number of frames.

    Raises:
        ConfigError: fps or max_frames is not positive.
    """
    if not 0 < fps < math.inf:
        raise ConfigError(f"fps={fps}: wanted more than 0 frames per second")
    if max_frames is not None and max_frames < 1:
        raise ConfigError(f"max_frames={max_frames}: wanted at least 1, or None for all")
