"""What a session asks of whatever gives it frames."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mod_edge.errors import ConfigError

Image = NDArray[np.uint8]


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


@dataclass(frozen=True)
class CapturePolicy:
    """What a source drops, when it has stalled, and when and how it ends.

    Attributes:
        max_waiting: frames that wait for a slow reader, the oldest of which are dropped; 0 drops
            none, because the source is read only as its frames are asked for.
        stall_s: longest wait for a frame before the source has stalled, in seconds.
        max_failed_reads: failed reads in a row after which nothing more is expected.
        is_finite: whether it may end by itself; of any other source an end is a loss.
    """

    max_waiting: int
    stall_s: float
    max_failed_reads: int
    is_finite: bool

    def __post_init__(self) -> None:
        if not self.stall_s > 0 or (self.max_waiting and math.isinf(self.stall_s)):
            raise ConfigError(f"stall_s={self.stall_s}: wanted more than 0 seconds")
        for name, least in (("max_waiting", 0), ("max_failed_reads", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}, wanted at least {least}")


# A damaged packet makes grab() fail as the end of the file does. 1000 failures at the end take
# 1-20 ms; a minute of H.264 with 7 % overwritten gives 544 of its 600 frames instead of 226.
FILE = CapturePolicy(max_waiting=0, stall_s=math.inf, max_failed_reads=1000, is_finite=True)
CAMERA = CapturePolicy(max_waiting=1, stall_s=5.0, max_failed_reads=1, is_finite=False)
STREAM = CapturePolicy(max_waiting=1, stall_s=5.0, max_failed_reads=1, is_finite=True)


class Source(Protocol):
    """Where a session gets its frames from; iterated once, to its end.

    Attributes:
        is_live: whether frames come at their own pace, one by one.
        num_dropped: frames that the caller was too slow for, so far.
        warnings: what a user should know, one sentence each; complete at the end.
    """

    is_live: bool
    num_dropped: int
    warnings: list[str]

    def __iter__(self) -> Iterator[Frame]:
        """The frames, in the order of their times.

        Raises:
            SourceError: while iterating: it broke off or stalled.
        """
        ...


def check_pace(fps: float, max_frames: int | None) -> None:
    """Refuse a rate or a number of frames that no source can give.

    Raises:
        ConfigError: fps or max_frames is not positive.
    """
    if not 0 < fps < math.inf:
        raise ConfigError(f"fps={fps}: wanted more than 0 frames a second")
    if max_frames is not None and max_frames < 1:
        raise ConfigError(f"max_frames={max_frames}: wanted 1 or more, or none for all")
