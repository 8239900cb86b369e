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


class Source(Protocol):
    """Where frames come from: `VideoFile` or `LiveCapture`."""

    is_live: bool
    num_dropped: int
    warnings: list[str]

    def __iter__(self) -> Iterator[Frame]: ...


def check_pace(fps: float, max_frames: int | None) -> None:
    """Refuse a rate or a number of frames that no source can give.

    Raises:
        ConfigError: fps or max_frames is not positive.
    """
    if not 0 < fps < math.inf:
        raise ConfigError(f"fps={fps}: wanted more than 0 frames a second")
    if max_frames is not None and max_frames < 1:
        raise ConfigError(f"max_frames={max_frames}: wanted 1 or more, or none for all")
