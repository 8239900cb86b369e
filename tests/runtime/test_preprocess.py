"""Letterboxing and stretching, compared with torch on a frame with texture and edges."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from mod_edge.config import VisionConfig
from mod_edge.errors import ShapeError
from mod_edge.runtime.preprocess import BICUBIC, BILINEAR, fit_frame, letterbox, stretch

pytestmark = pytest.mark.numeric

torch = pytest.importorskip("torch")

every_fit = pytest.mark.parametrize("fit", [letterbox, stretch])

CLIP = Path(__file__).resolve().parent.parent / "data" / "box.mp4"

# Mean and largest difference in levels of 255, measured with both OpenCV 5.0.0 and 4.8.1:
# 0.77 and 16.5 at 384, 0.85 and 13.3 at 224. INTER_AREA has 1.67 and 54, INTER_CUBIC and
# INTER_LINEAR 9.4 and 215.
MEAN_LEVELS = 1.0
MAX_LEVELS = 24
# Reductions by 2, 1.67, 1.15 and 1.04: at most 1.23 and 26; INTER_CUBIC has 1.5 to 6.8 and 135.
MEAN_LEVELS_SMALL = 1.4
MAX_LEVELS_SMALL = 30
# At most 1.54 and 38; INTER_CUBIC and INTER_LINEAR have up to 8.0 and 195.
MEAN_LEVELS_STRETCHED = 1.8
MAX_LEVELS_STRETCHED = 45


def textured_frame(height, width):
    """(height, width, 3) uint8 BGR: a frame of the clip under 1/f noise, boxes, lines and text."""
    rng = np.random.default_rng(0)
    capture = cv2.VideoCapture(str(CLIP))
    photo = cv2.resize(capture.read()[1], (width, height), interpolation=cv2.INTER_CUBIC)
    capture.release()
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0
    white = np.fft.rfft2(rng.standard_normal((height, width)))
    noise = np.fft.irfft2(white / frequency, s=(height, width))
    frame = photo + (18 * noise / noise.std())[..., None]
    frame = np.clip(frame, 0, 255).astype(np.uint8)
    for _ in range(60):
        x, y = (int(rng.integers(0, side)) for side in (width, height))
        color = rng.integers(0, 255, 3).tolist()
        size = rng.integers(3, width // 12, 2)
        frame[y : y + size[0], x : x + size[1]] = rng.integers(0, 255, 3)
        cv2.line(frame, (x, y), (width - x, int(rng.integers(0, height))), color, 1)
        cv2.putText(frame, "mod-edge 42", (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.7, color, 1)
    return frame


def reference(frame, height, width, *, mode="bicubic", antialias=True):
    """RGB of the frame at (height, width), by torch's resampling."""
    planes = torch.from_numpy(frame[..., ::-1].astype(np.float32)).permute(2, 0, 1)[None]
    fitted = torch.nn.functional.interpolate(
        planes, (height, width), mode=mode, antialias=antialias, align_corners=False
    )
    return fitted[0].permute(1, 2, 0).clamp(0, 255).numpy()


def boxed(frame, image_size):
    out = np.full((image_size, image_size, 3), 77, np.uint8)  # old content must be overwritten
    letterbox(frame, out)
    return out


def stretched(frame, image_size, kernel=BICUBIC):
    out = np.full((image_size, image_size, 3), 77, np.uint8)
    assert stretch(frame, out, kernel) == (0, 0, image_size, image_size)
    return out


def difference(ours, theirs):
    levels = np.abs(ours.astype(np.float32) - theirs)
    return levels.mean(), levels.max()


@pytest.fixture(scope="module")
def full_hd():
    return textured_frame(1080, 1920)


@pytest.mark.parametrize("image_size", [384, 224])
def test_a_full_hd_frame_is_reduced_like_antialiased_bicubic(full_hd, image_size):
    height = image_size * 9 // 16
    top = (image_size - height) // 2
    theirs = reference(full_hd, height, image_size)
    mean, largest = difference(boxed(full_hd, image_size)[top : top + height], theirs)
    assert mean < MEAN_LEVELS
    assert largest < MAX_LEVELS


@pytest.mark.parametrize("method", [cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC])
def test_no_single_opencv_resize_matches_antialiased_bicubic(full_hd, method):
    theirs = reference(full_hd, 216, 384)
    mean, largest = difference(
        cv2.resize(full_hd, (384, 216), interpolation=method)[..., ::-1], theirs
    )
    assert mean > 1.5 * MEAN_LEVELS
    assert largest > 1.5 * MAX_LEVELS


@pytest.mark.parametrize("width", [768, 640, 440, 400])
def test_a_frame_less_than_twice_as_large_is_also_antialiased(width):
    frame = textured_frame(width * 3 // 4, width)
    mean, largest = difference(boxed(frame, 384)[48:336], reference(frame, 288, 384))
    assert mean < MEAN_LEVELS_SMALL
    assert largest < MAX_LEVELS_SMALL


@pytest.mark.parametrize(("height", "width"), [(240, 320), (36, 48)])
def test_a_small_frame_is_enlarged_by_bicubic(height, width):
    frame = textured_frame(height, width)
    theirs = reference(frame, 288, 384, antialias=False)  # enlarging has nothing to alias
    assert difference(boxed(frame, 384)[48:336], theirs)[1] <= 1.0


def test_a_frame_of_the_right_size_is_only_reordered_to_rgb():
    frame = textured_frame(48, 64)
    assert (boxed(frame, 64)[8:56] == frame[..., ::-1]).all()


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        (90, 160, (14, 50), (0, 64)),  # landscape
        (160, 90, (0, 64), (14, 50)),  # portrait
        (70, 70, (0, 64), (0, 64)),
        (719, 1081, (10, 53), (0, 64)),  # 42.57 rows: 43, an odd number of black ones
        (9, 5, (0, 64), (14, 50)),
        (1, 1, (0, 64), (0, 64)),
        (1, 500, (31, 32), (0, 64)),  # 0.13 rows: 1
        (500, 1, (0, 64), (31, 32)),
    ],
)
def test_the_picture_is_centred_on_black(height, width, rows, columns):
    image = np.full((height, width, 3), (10, 100, 200), np.uint8)  # BGR
    expected = np.zeros((64, 64, 3), np.uint8)
    expected[slice(*rows), slice(*columns)] = (200, 100, 10)  # RGB
    assert np.abs(boxed(image, 64).astype(int) - expected).max() <= 1


# ---- stretching ----


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (1080, 1920),
        (1280, 720),  # by 3.3, through an area average, and by 1.9
        (480, 640),
        (384, 640),  # the height stays
        (360, 640),  # the height is enlarged
        (460, 300),  # by 1.2, and enlarged
    ],
)
@pytest.mark.parametrize(
    ("kernel", "mode"), [(BICUBIC, "bicubic"), (BILINEAR, "bilinear")], ids=["bicubic", "bilinear"]
)
def test_each_side_is_stretched_like_antialiased_resampling(height, width, kernel, mode):
    frame = textured_frame(height, width)
    theirs = reference(frame, 384, 384, mode=mode)
    mean, largest = difference(stretched(frame, 384, kernel), theirs)
    assert mean < MEAN_LEVELS_STRETCHED
    assert largest < MAX_LEVELS_STRETCHED


def test_a_small_frame_is_stretched_by_the_kernel_alone():
    frame = textured_frame(240, 320)
    theirs = reference(frame, 384, 384, mode="bilinear", antialias=False)
    assert difference(stretched(frame, 384, BILINEAR), theirs)[1] <= 1.0
    assert difference(stretched(frame, 384, BICUBIC), theirs)[1] > 20  # measured 61


@pytest.mark.parametrize("side", [50, 64, 70, 100, 300])
def test_a_square_frame_is_stretched_as_it_is_letterboxed(side):
    frame = textured_frame(side, side)
    np.testing.assert_array_equal(stretched(frame, 64), boxed(frame, 64))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (9, 5), (64, 7)])
def test_a_stretched_frame_fills_the_square(height, width):
    image = np.full((height, width, 3), (10, 100, 200), np.uint8)  # BGR
    assert np.abs(stretched(image, 64).astype(int) - (200, 100, 10)).max() <= 1


@pytest.mark.parametrize("frame_resize", ["letterbox", "stretch"])
@pytest.mark.parametrize("frame_resample", ["bicubic", "bilinear"])
def test_a_frame_is_fitted_as_the_config_says(frame_resize, frame_resample):
    vision = VisionConfig(
        8, 8, 1, 1, 64, 8, frame_resize=frame_resize, frame_resample=frame_resample
    )
    frame = textured_frame(90, 160)
    ours, theirs = np.empty((2, 64, 64, 3), np.uint8)
    placement = fit_frame(frame, ours, vision)
    fit = {"letterbox": letterbox, "stretch": stretch}[frame_resize]
    kernel = {"bicubic": BICUBIC, "bilinear": BILINEAR}[frame_resample]
    assert placement == fit(frame, theirs, kernel)
    np.testing.assert_array_equal(ours, theirs)


# ---- buffers ----


def test_letterboxing_one_frame_of_a_batch_leaves_its_neighbours_unchanged():
    batch = np.full((3, 32, 32, 3), 77, np.uint8)
    letterbox(np.full((20, 40, 3), 255, np.uint8), batch[1])
    assert (batch[[0, 2]] == 77).all()
    assert set(np.unique(batch[1])) == {0, 255}


@every_fit
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=lambda image: f"{image.shape}-{image.dtype}",
)
def test_an_image_of_another_shape_or_dtype_is_an_error_with_the_conversion_to_use(fit, image):
    with pytest.raises(ShapeError, match=r"wanted \(H, W, 3\) uint8 in BGR.*cvtColor"):
        fit(image, np.empty((16, 16, 3), np.uint8))


@every_fit
@pytest.mark.parametrize(
    "out",
    [
        np.zeros((16, 8, 3), np.uint8),
        np.zeros((16, 16), np.uint8),
        np.zeros((16, 16, 3), np.float32),
        np.zeros((3, 16, 16), np.uint8).transpose(1, 2, 0),
    ],
    ids=lambda out: f"{out.shape}-{out.dtype}-{out.strides}",
)
def test_a_buffer_of_another_shape_or_dtype_is_an_error(fit, out):
    with pytest.raises(ShapeError, match=r"wanted \(I, I, 3\) uint8"):
        fit(np.zeros((8, 8, 3), np.uint8), out)
