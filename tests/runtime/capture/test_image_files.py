"""Images as a source: their order, their times, and what cannot be read."""

import cv2
import numpy as np
import pytest

from mod_edge.errors import ConfigError, SourceError
from mod_edge.runtime.capture.image_files import ImageFiles
from mod_edge.runtime.capture.open_source import check_source, open_source
from mod_edge.runtime.capture.source_name import parse_source
from tests.runtime.capture.numbered_video import picture_of, seen_in


@pytest.fixture
def folder(tmp_path):
    """A folder with pictures 0 to 11, whose names sort wrongly as text, and a file of notes."""
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(12):
        cv2.imwrite(str(frames / f"take2-{number}.png"), picture_of(number))
    (frames / "notes.txt").write_text("not an image")
    return frames


def test_images_come_in_the_natural_order_of_their_names_one_a_frame(folder):
    with open_source(folder, fps=2) as images:
        assert not images.is_live
        assert seen_in(images) == [(number, number / 2) for number in range(12)]
        assert images.warnings == []


def test_a_glob_takes_what_matches_and_max_frames_ends_it(folder):
    with open_source(f"{folder}/take2-1*.png", fps=2, max_frames=2) as images:
        assert seen_in(images) == [(1, 0.0), (10, 0.5)]


@pytest.mark.parametrize(
    ("image_fps", "numbers"),
    [(10, [0, 5, 10]), (3, [0, 2, 3, 5, 6, 8, 9, 11]), (0.5, [0, 1, 1, 1, 1, 2, 2])],
)
def test_images_at_a_stated_rate_are_the_first_at_or_after_each_instant(folder, image_fps, numbers):
    with open_source(folder, fps=2, image_fps=image_fps) as images:
        seen = seen_in(images)[:7] if image_fps < 1 else seen_in(images)
    assert seen == [(number, k / 2) for k, number in enumerate(numbers)]


def test_one_image_is_a_source_of_one_frame(folder):
    with open_source(folder / "take2-7.png", fps=2) as images:
        assert seen_in(images) == [(7, 0.0)]


def test_an_image_of_any_depth_and_name_is_read_as_8_bit_bgr(tmp_path):
    deep = np.full((5, 7), 65535, np.uint16)
    path = tmp_path / "caf\udce9.png"
    path.write_bytes(cv2.imencode(".png", deep)[1].tobytes())
    (frame,) = ImageFiles(tmp_path, fps=2)
    assert frame.image.shape == (5, 7, 3)
    assert frame.image.dtype == np.uint8
    assert frame.image.min() == 255


def test_the_rotation_of_a_photograph_is_applied(tmp_path):
    jpeg = cv2.imencode(".jpg", np.zeros((5, 7, 3), np.uint8))[1].tobytes()
    little_endian = (
        b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + b"\0" * 4
    )
    exif = b"Exif\0\0" + little_endian  # orientation 6: turn to the right
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (tmp_path / "phone.jpg").write_bytes(jpeg[:2] + segment + jpeg[2:])
    (frame,) = ImageFiles(tmp_path, fps=2)
    assert frame.image.shape == (7, 5, 3)


def test_images_of_other_sizes_are_used_with_one_warning(folder):
    cv2.imwrite(str(folder / "take2-3.png"), np.zeros((32, 48, 3), np.uint8))
    with open_source(folder, fps=2) as images:
        assert [frame.image.shape[0] for frame in images] == [64] * 3 + [32] + [64] * 8
        (warning,) = images.warnings
    assert warning.startswith(
        f"{folder}: 1 image has another size than the first (48 x 32 pixels instead of 64 x 64)"
    )


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"words"])
def test_an_image_that_cannot_be_read_is_named_once_it_is_due(folder, content):
    (folder / "take2-2.png").write_bytes(content)
    with open_source(folder, fps=2) as images:
        assert len([next(images), next(images)]) == 2
        with pytest.raises(SourceError, match=r"take2-2\.png cannot be read as an image: .*remove"):
            next(images)


def test_a_place_without_images_is_an_error_before_a_model_is_loaded(tmp_path):
    def fault(source):
        with pytest.raises(SourceError) as caught:
            check_source(parse_source(str(source)))
        return str(caught.value)

    assert f"the folder {tmp_path} is empty" in fault(tmp_path)
    (tmp_path / "clip.mp4").touch()
    assert "holds 1 files, none of them an image" in fault(tmp_path)
    assert f"no file matches {tmp_path}/*.png" in fault(tmp_path / "*.png")
    assert "there is no image" in fault(tmp_path / "a.png")


def test_a_rate_that_is_not_positive_is_an_error(folder):
    with pytest.raises(ConfigError, match="fps=0"):
        open_source(folder, fps=2, image_fps=0)
