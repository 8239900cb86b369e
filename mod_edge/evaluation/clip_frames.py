"""A clip's frames in memory, as the model sees them."""

import zlib
from collections.abc import Iterator

import cv2
import numpy as np

from mod_edge.config import ModelConfig
from mod_edge.data.clips import DURATION_SLACK_S, Clip
from mod_edge.runtime.capture.opencv import open_file
from mod_edge.runtime.capture.source import Frame
from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.runtime.loaded_model import UInt8Array
from mod_edge.runtime.preprocess import fit_frame


class ClipFrames:
    """A clip that is read once and streamed several times; a `Source` like `VideoFile`.

    Attributes:
        pixels: (F, I, I, 3) uint8 RGB, letterboxed or stretched.
        warnings: about the video.
    """

    is_live = False
    is_ready = True
    num_dropped = 0

    def __init__(self, pixels: UInt8Array, fps: float, warnings: list[str]) -> None:
        self.pixels = pixels
        self.warnings = warnings
        self._fps = fps

    def __iter__(self) -> Iterator[Frame]:
        for index, image in enumerate(self.pixels):
            # a square image of the model's size stays as it is
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
            fit_frame(frame.image, frames[-1], config.vision_config)
    return ClipFrames(np.stack(frames), stream.frame_fps, video.warnings)


def num_clip_frames(clip: Clip, fps: float) -> int:
    """The most frames that `read_clip_frames` can return at `fps`.

    The video is decoded to count them only where its header does not confirm the duration in its
    line, so that a wrong duration costs no memory and no time.

    Raises:
        SourceError: the video cannot be read.
    """
    most_frames = clip.most_frames(fps)
    if _header_duration_s(clip) >= clip.duration_s - DURATION_SLACK_S:
        return most_frames
    with VideoFile(clip.video, fps=fps, max_frames=most_frames) as video:
        return sum(1 for _frame in video)


def _header_duration_s(clip: Clip) -> float:
    """The video's length according to its header; 0 where that does not tell."""
    capture = open_file(clip.video)
    fps, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    capture.release()
    return count / fps if fps > 0 else 0.0


def seed_of(clip: Clip) -> int:
    """A seed derived from the clip's uid, the same in every run."""
    return zlib.crc32(clip.uid.encode())
