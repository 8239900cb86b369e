"""Prepare frames for the vision encoder: square, RGB, letterboxed or stretched.

VideoLLM-online prepares its training frames with ffmpeg: bicubic to the longest side, centred on
black. SigLIP's own image processor stretches both sides to the square: bicubic, in SigLIP 2
bilinear. All of these are antialiased: the kernel grows with the reduction. OpenCV's is not: its
bicubic reads 4x4 pixels at any reduction, so thin lines break up and text flickers.

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

A stretched frame is reduced by another factor in each axis. Where the two need different methods
(one side is enlarged, say), the axes are resized one after the other. Compared with transformers'
SiglipImageProcessor (Pillow): mean and largest difference in levels for such frames of other sizes,
to 384 pixels:

                           1080p        1280x720     640x480      640x360      320x240
    stretched, bicubic     0.69  15     0.72  21     1.07  36     0.98  23     1.71  29
    stretched, bilinear    0.57  18     0.72  16     0.94  22     0.64  14     0.22   1

Enlarging differs by OpenCV's bicubic, which has a = -0.75 where Pillow's has -0.5.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from mod_edge.config import VisionConfig
from mod_edge.errors import ShapeError

Image = NDArray[np.uint8]

SLIGHT_REDUCTION = 1.25
SIGMA_PER_REDUCTION = 0.35  # pixels; the best of 0.2 to 0.4 for reductions of 1.02 to 1.25
# Where another method begins: below 1 is enlarging, from 2 on a side is at least twice its target.
METHOD_LIMITS = (1, SLIGHT_REDUCTION, 2)


@dataclass(frozen=True)
class Kernel:
    """How neighbouring pixels are weighted.

    Attributes:
        interpolation: OpenCV's, for enlarging.
        halving_taps: that halve an image, followed by the pair averages of INTER_AREA.
    """

    interpolation: int
    halving_taps: NDArray[np.float32]


# Followed by the pair averages, these 7 taps equal the 8 of the antialiased kernel (a = -0.5).
BICUBIC = Kernel(
    cv2.INTER_CUBIC, np.array([-3, -6, 35, 76, 35, -6, -3], dtype=np.float32) / np.float32(128)
)
# As wide as the antialiased triangle together with the area average before it; the triangle's own
# taps, 1 2 1, blur: mean differences are half as large again.
BILINEAR = Kernel(cv2.INTER_LINEAR, np.array([1, 4, 1], dtype=np.float32) / np.float32(6))
KERNELS = {"bicubic": BICUBIC, "bilinear": BILINEAR}
UNFILTERED = np.ones(1, dtype=np.float32)


class Placement(NamedTuple):
    """Where the picture lies in the model's square, in pixels of the square; the rest is black."""

    top: int
    left: int
    height: int
    width: int


def fit_frame(image: Image, out: Image, vision: VisionConfig) -> Placement:
    """Write the frame into `out` by the resize rule and kernel of `vision`.

    Arguments, result and errors are those of `letterbox` and `stretch`.
    """
    fit = {"letterbox": letterbox, "stretch": stretch}[vision.frame_resize]
    return fit(image, out, KERNELS[vision.frame_resample])


def letterbox(image: Image, out: Image, kernel: Kernel = BICUBIC) -> Placement:
    """Write the frame into `out`: longest side I, aspect kept, centred on black, RGB.

    Args:
        image: (H, W, 3) uint8 BGR of any size, as from OpenCV.
        out: (I, I, 3) uint8, C-contiguous, written in place.
        kernel: for resizing.

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
    # The short side's reduction differs by rounding alone.
    reduction = longest / image_size
    fitted = _resize(image, (height, width), (reduction, reduction), kernel)
    top, left = (image_size - height) // 2, (image_size - width) // 2
    bottom, right = top + height, left + width
    out[:top] = 0
    out[bottom:] = 0
    out[top:bottom, :left] = 0
    out[top:bottom, right:] = 0
    cv2.cvtColor(fitted, cv2.COLOR_BGR2RGB, dst=out[top:bottom, left:right])
    return Placement(top, left, height, width)


def stretch(image: Image, out: Image, kernel: Kernel = BICUBIC) -> Placement:
    """Write the frame into `out`: both sides I whatever the aspect, RGB, as SigLIP's processor.

    Args:
        image: (H, W, 3) uint8 BGR of any size, as from OpenCV.
        out: (I, I, 3) uint8, C-contiguous, written in place.
        kernel: for resizing.

    Returns:
        The whole of `out`.

    Raises:
        ShapeError: image or out has the wrong shape or dtype.
    """
    _check(image, out)
    image_size = out.shape[0]
    vertical, horizontal = (side / image_size for side in image.shape[:2])
    fitted = _resize(image, (image_size, image_size), (vertical, horizontal), kernel)
    cv2.cvtColor(fitted, cv2.COLOR_BGR2RGB, dst=out)
    return Placement(0, 0, image_size, image_size)


def _resize(
    image: Image, size: tuple[int, int], reductions: tuple[float, float], kernel: Kernel
) -> Image:
    """The image at `size`; sizes and reductions are those of height and width."""
    vertical, horizontal = (bisect_right(METHOD_LIMITS, reduction) for reduction in reductions)
    if vertical == horizontal:
        return _resize_alike(image, size, reductions, kernel)
    wide = _resize_alike(image, (image.shape[0], size[1]), (1, reductions[1]), kernel)
    return _resize_alike(wide, size, (reductions[0], 1), kernel)


def _resize_alike(
    image: Image, size: tuple[int, int], reductions: tuple[float, float], kernel: Kernel
) -> Image:
    """The image at `size` by one method for both sides; a side reduced by 1 is not filtered."""
    (height, width), (keeps_height, keeps_width) = size, (each == 1 for each in reductions)
    if keeps_height and keeps_width:
        return image
    reduction = max(each for each in reductions if each != 1)
    if reduction < 1:
        return cast(Image, cv2.resize(image, (width, height), interpolation=kernel.interpolation))
    if reduction < SLIGHT_REDUCTION:  # going through the double size would be slower
        soft = cv2.GaussianBlur(
            image,
            (int(keeps_width), int(keeps_height)),  # 1 for no blur, 0 for a size to fit sigma
            sigmaX=SIGMA_PER_REDUCTION * reductions[1],
            sigmaY=SIGMA_PER_REDUCTION * reductions[0],
            borderType=cv2.BORDER_REPLICATE,
        )
        return cast(Image, cv2.resize(soft, (width, height), interpolation=kernel.interpolation))
    double = (width if keeps_width else 2 * width, height if keeps_height else 2 * height)
    is_large = image.shape[1] >= double[0] and image.shape[0] >= double[1]
    first = cv2.INTER_AREA if is_large else cv2.INTER_CUBIC  # INTER_AREA cannot enlarge
    doubled = cv2.resize(image, double, interpolation=first)
    sharp = cv2.sepFilter2D(
        doubled,
        -1,
        UNFILTERED if keeps_width else kernel.halving_taps,
        UNFILTERED if keeps_height else kernel.halving_taps,
        borderType=cv2.BORDER_REPLICATE,
    )
    return cast(Image, cv2.resize(sharp, (width, height), interpolation=cv2.INTER_AREA))


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
