"""The contract between a session and its source of frames."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

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
    """

    index: int
    time_s: float
    image: Image


@dataclass(frozen=True)
class CapturePolicy:
    """Which frames a source drops, and when it has stalled or ended.

    A stall, and the end of a source that is not finite, raise `SourceError` while iterating: the
    source was lost and may be opened again. The end of a finite source ends the iteration.

    Attributes:
        max_waiting: length of the queue for a slow reader, which drops its oldest frames; 0 reads
            the source on demand and drops none.
        stall_s: longest wait for a picture before the source counts as stalled, in seconds; a stall
            is an error.
        max_failed_reads: failed reads in a row after which the source has ended. OpenCV reports
            a picture that it cannot decode like the end.
        is_finite: whether it may end by itself; otherwise its end is an error.
    """

    max_waiting: int
    stall_s: float
    max_failed_reads: int
    is_finite: bool

    def __post_init__(self) -> None:
        if not self.stall_s > 0:
            raise ConfigError(f"stall_s={self.stall_s}: wanted more than 0 seconds")
        for name, least in (("max_waiting", 0), ("max_failed_reads", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}, wanted at least {least}")


# grab() fails at a damaged packet as it does at the end of the file. 1000 failures at the end take
# 1-20 ms; a minute of H.264 with 7 % overwritten gives 544 of its 600 frames instead of 226.
FILE = CapturePolicy(max_waiting=0, stall_s=math.inf, max_failed_reads=1000, is_finite=True)
# A camera, a stream or a pipeline. A bad picture costs one or two failed reads; after a server has
# closed the connection reads fail at once, and the 50 take a second.
LIVE = CapturePolicy(max_waiting=1, stall_s=5.0, max_failed_reads=50, is_finite=False)
# A file that a server sends.
RECORDING = replace(FILE, stall_s=LIVE.stall_s)


class Source(Protocol):
    """A source of frames; iterated once, to its end.

    Attributes:
        is_live: whether frames arrive in real time.
        num_dropped: frames dropped so far because the caller was too slow.
    """

    is_live: bool
    num_dropped: int

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


def stall_error(
    name: str, silent_s: float, policy: CapturePolicy, *, num_frames: int, num_failed: int = 0
) -> SourceError:
    """The error of a source whose last picture came `silent_s` seconds ago.

    `num_frames` came before, and `num_failed` reads have failed since.
    """
    failed = f", {num_failed} reads failed" if num_failed else ""
    return SourceError(
        f"{name} delivered no frame for {silent_s:.1f} s (allowed: {policy.stall_s:g} s{failed}) "
        f"after {num_frames} frames; check that it is powered and reachable, then run again"
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
