"""Prepare frames for the vision encoder: square, RGB, letterboxed.

VideoLLM-online prepares its training frames with ffmpeg: bicubic to the longest side, centred on
black. ffmpeg's bicubic is antialiased: its kernel grows with the reduction. OpenCV's is not: it
reads 4x4 pixels at any reduction, so thin lines break up and text flickers.

A frame is therefore reduced to twice the target size by area, then halved with the antialiased
bicubic kernel. Compared with torch's antialiased bicubic: mean and largest difference in levels of
255 for a 1080p frame of texture, lines and text and for a photograph of 1282x1110, both to 384
pixels (OpenCV 5.0.0 and 4.8.1 agree); fastest of 160 runs for the 1080p frame on two shared x86-64
cores:

                                     1080p frame    photograph       time
    this module                      0.77    16     0.78     7       13 ms
    area to double, Gaussian, cubic  1.22    28     1.25    10       17 ms
    Gaussian, cubic                  1.30    28     1.25     9       19 ms
    INTER_AREA                       1.67    54     1.18    11        5 ms
    area to double, cubic            3.63    95     2.85    25       10 ms
    INTER_LINEAR                     9.43   215     4.40    55      0.5 ms
    INTER_CUBIC                      9.43   215     5.54    56      0.7 ms
"""

from typing import NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from mod_edge.errors import ShapeError

Image = NDArray[np.uint8]

SLIGHT_REDUCTION = 1.25
SIGMA_PER_REDUCTION = 0.35  # pixels; the best of 0.2 to 0.4 for reductions of 1.02 to 1.25
# The antialiased bicubic kernel (a = -0.5) that halves an image has 8 taps; these 7, followed by
# the pair averages of INTER_AREA, equal those 8 exactly.
HALVING_TAPS = np.array([-3, -6, 35, 76, 35, -6, -3], dtype=np.float32) / 128


class Placement(NamedTuple):
    """Where the picture lies in the model's square, in pixels of the square; the rest is black."""

    top: int
    left: int
    height: int
    width: int


def letterbox(image: Image, out: Image) -> Placement:
    """Write the frame into `out`: longest side I, aspect kept, centred on black, RGB.

    Args:
        image: (H, W, 3) uint8 BGR of any size, as from OpenCV.
        out: (I, I, 3) uint8, C-contiguous, written in place.

    Returns:
        Where in `out` the picture lies.

    Raises:
        ShapeError: image or out has the wrong shape or dtype.
    """
    _check(image, out)
    image_size = out.shape[0]
    longest = max(image.shape[:2])
    # rounded half up, as ffmpeg does; the short side of a very long image keeps one pixel
    height, width = (
        max(1, (2 * side * image_size + longest) // (2 * longest)) for side in image.shape[:2]
    )
    fitted = _resize(image, height, width)
    top, left = (image_size - height) // 2, (image_size - width) // 2
    bottom, right = top + height, left + width
    out[:top] = 0
    out[bottom:] = 0
    out[top:bottom, :left] = 0
    out[top:bottom, right:] = 0
    cv2.cvtColor(fitted, cv2.COLOR_BGR2RGB, dst=out[top:bottom, left:right])
    return Placement(top, left, height, width)


def _resize(image: Image, height: int, width: int) -> Image:
    """The image at (height, width), which has its aspect ratio up to rounding."""
    size = (width, height)
    if image.shape[:2] == (height, width):
        return image
    reduction = max(image.shape[:2]) / max(size)
    if reduction < 1:
        return cast(Image, cv2.resize(image, size, interpolation=cv2.INTER_CUBIC))
    if reduction < SLIGHT_REDUCTION:  # going through the double size would be slower
        sigma = SIGMA_PER_REDUCTION * reduction
        soft = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        return cast(Image, cv2.resize(soft, size, interpolation=cv2.INTER_CUBIC))
    is_large = image.shape[0] >= 2 * height and image.shape[1] >= 2 * width
    first = cv2.INTER_AREA if is_large else cv2.INTER_CUBIC  # INTER_AREA cannot enlarge
    double = cv2.resize(image, (2 * width, 2 * height), interpolation=first)
    sharp = cv2.sepFilter2D(double, -1, HALVING_TAPS, HALVING_TAPS, borderType=cv2.BORDER_REPLICATE)
    return cast(Image, cv2.resize(sharp, size, interpolation=cv2.INTER_AREA))


def _check(image: Image, out: Image) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ShapeError(
            f"the frame is {image.shape} {image.dtype}, wanted (H, W, 3) uint8 in BGR order; "
            "convert it with cv2.cvtColor (COLOR_GRAY2BGR, COLOR_BGRA2BGR)"
        )
    is_square = out.ndim == 3 and out.shape[0] == out.shape[1] > 0 and out.shape[2] == 3
    if not is_square or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ShapeError(
            f"out is {out.shape} {out.dtype}, wanted (I, I, 3) uint8, C-contiguous; "
            "make it with np.empty((image_size, image_size, 3), np.uint8)"
        )
