"""A clip's frames in memory, as the model sees them."""

import zlib
from collections.abc import Iterator

import numpy as np

from mod_edge.config import ModelConfig
from mod_edge.data.clips import Clip
from mod_edge.runtime.capture.source import Frame
from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.runtime.loaded_model import UInt8Array
from mod_edge.runtime.preprocess import letterbox


class ClipFrames:
    """A clip that is read once and streamed several times; a `Source` like `VideoFile`.

    Attributes:
        pixels: (F, I, I, 3) uint8 RGB, letterboxed.
        warnings: about the video.
    """

    is_live = False
    num_dropped = 0

    def __init__(self, pixels: UInt8Array, fps: float, warnings: list[str]) -> None:
        self.pixels = pixels
        self.warnings = warnings
        self._fps = fps

    def __iter__(self) -> Iterator[Frame]:
        for index, image in enumerate(self.pixels):
            # letterboxing does not change a square image of the model's size
            yield Frame(index, index / self._fps, np.ascontiguousarray(image[..., ::-1]))

    def with_pixels(self, pixels: UInt8Array) -> "ClipFrames":
        """The same clip with other pixels."""
        return ClipFrames(pixels, self._fps, self.warnings)


def read_clip_frames(clip: Clip, config: ModelConfig) -> ClipFrames:
    """The clip's frames at the model's rate, up to the duration in its line.

    Raises:
        SourceError: the video cannot be read.
    """
    stream, side = config.stream_config, config.vision_config.image_size
    frames: list[UInt8Array] = []
    max_frames = clip.most_frames(stream.frame_fps)
    with VideoFile(clip.video, fps=stream.frame_fps, max_frames=max_frames) as video:
        for frame in video:
            frames.append(np.zeros((side, side, 3), np.uint8))
            letterbox(frame.image, frames[-1])
    return ClipFrames(np.stack(frames), stream.frame_fps, video.warnings)


def seed_of(clip: Clip) -> int:
    """A seed derived from the clip's uid, the same in every run."""
    return zlib.crc32(clip.uid.encode())
