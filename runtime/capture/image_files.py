"""Images as the frames of a video: a folder, a glob or one image, in the natural order of names."""

import glob
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import cv2
import numpy as np

from mod_edge.errors import SourceError
from mod_edge.runtime.capture.source import Frame, Image, check_pace
from mod_edge.runtime.capture.source_name import IMAGE_SUFFIXES

ROUNDING = 1e-6  # of an image: instants k / fps are not exact


class ImageFiles(AbstractContextManager["ImageFiles"]):
    """The frames of images at `fps`: image k is at k / image_fps seconds.

    Each grid instant gets the first image at or after it, as of a video file: images at a lower
    rate repeat, those at a higher rate are left out. An image is read when its frame is due; the
    rotation in its EXIF data is applied. Images of different sizes are used as they are.

    Args:
        pattern: a folder, whose files with one of `IMAGE_SUFFIXES` are taken, an image, or a glob.
        fps: frames/s of the grid.
        image_fps: frames/s of the images; None is `fps`, so that every image is one frame.
        max_frames: end after this many frames.

    Attributes:
        is_live: False.
        is_ready: True; images are read on demand.
        num_frames: returned so far.
        num_dropped: always 0.

    Raises:
        SourceError: there is no image; while iterating, an image cannot be read.
        ConfigError: a rate or max_frames is not positive.
    """

    is_live = False
    is_ready = True
    num_dropped = 0

    def __init__(
        self,
        pattern: str | os.PathLike[str],
        *,
        fps: float,
        image_fps: float | None = None,
        max_frames: int | None = None,
    ) -> None:
        image_fps = fps if image_fps is None else image_fps
        check_pace(fps, max_frames)
        check_pace(image_fps, None)
        self.num_frames = 0
        self._name = str(pattern)
        self._paths = images_at(Path(pattern))
        self._fps, self._image_fps = fps, image_fps
        self._max_frames = max_frames
        self._is_closed = False
        self._number = -1  # of the image last read
        self._image: Image | None = None
        self._sizes = Counter[tuple[int, int]]()  # width and height of images read, first first

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        instant_s = self.num_frames / self._fps
        number = math.ceil(instant_s * self._image_fps - ROUNDING)
        is_last = self.num_frames == self._max_frames or number >= len(self._paths)
        if is_last or self._is_closed:
            raise StopIteration
        if number != self._number or self._image is None:
            self._image, self._number = read_image(self._paths[number]), number
            self._sizes[self._image.shape[1], self._image.shape[0]] += 1
        frame = Frame(self.num_frames, instant_s, self._image)
        self.num_frames += 1
        return frame

    @property
    def warnings(self) -> list[str]:
        """A sentence about images of other sizes, so far."""
        sizes = dict(self._sizes)  # a view asks from another thread while images are read
        if len(sizes) < 2:
            return []
        first, other, *_ = (f"{width} x {height}" for width, height in sizes)
        num_others = sum(sizes.values()) - next(iter(sizes.values()))
        images = "1 image has" if num_others == 1 else f"{num_others} images have"
        return [
            f"{self._name}: {images} another size than the first ({other} pixels instead of "
            f"{first}); each is fitted into the model's square by itself"
        ]

    def close(self) -> None:
        """End the iteration."""
        self._is_closed = True


def images_at(pattern: Path) -> Sequence[Path]:
    """The images of a folder or a glob, or the one image, in the natural order of their names.

    Raises:
        SourceError: there is none, or the folder cannot be read.
    """
    try:
        if pattern.is_dir():
            return _images_of_folder(pattern)
        if pattern.exists():
            return [pattern]
    except (OSError, ValueError) as exc:
        raise SourceError(f"{pattern} cannot be read: {exc}; check the path") from exc
    if not glob.has_magic(str(pattern)):
        raise SourceError(f"there is no image {pattern}; check the path")
    paths = [path for name in glob.glob(str(pattern)) if (path := Path(name)).is_file()]
    if not paths:
        raise SourceError(f"no file matches {pattern}; check the folder and the names in it")
    return sorted(paths, key=natural_order)


def _images_of_folder(folder: Path) -> Sequence[Path]:
    files = [path for path in folder.iterdir() if path.is_file()]
    paths = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        found = f"holds {len(files)} files, none of them an image" if files else "is empty"
        raise SourceError(
            f"the folder {folder} {found}; name a folder of images "
            f"({', '.join(IMAGE_SUFFIXES)}) or one video file"
        )
    return sorted(paths, key=natural_order)


def natural_order(path: Path) -> list[tuple[int, str]]:
    """A key under which 2.png comes before 10.png."""
    parts = re.split(r"([0-9]+)", str(path))
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in parts]


def read_image(path: Path) -> Image:
    """(H, W, 3) uint8 BGR, upright by its EXIF data; from any depth and number of channels.

    Raises:
        SourceError: the file cannot be read or is not an image.
    """
    try:
        content = np.fromfile(path, np.uint8)  # OpenCV reads no names that are not UTF-8
    except OSError as exc:
        raise SourceError(f"{path} cannot be read: {exc.strerror}; check its permissions") from exc
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    if image is None:
        raise SourceError(
            f"{path} cannot be read as an image: {content.size} bytes, first "
            f"{content[:8].tobytes()!r}; wanted a whole JPEG, PNG, BMP, TIFF or WebP file; remove "
            "it, or write it again"
        )
    return cast(Image, image)
