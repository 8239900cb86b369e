"""The test pattern: a camera that is always there."""

import numpy as np
import pytest

from mod_edge.profiles import Camera
from mod_edge.runtime.capture import pattern_reader
from mod_edge.runtime.capture.open_source import open_source
from mod_edge.runtime.capture.pattern_reader import PatternReader, draw_pattern

SMALL = Camera(67, 43, 25.0)


def picture_from(reader):
    assert reader.grab()
    is_picture, image = reader.retrieve()
    assert is_picture
    return image


def test_pictures_come_at_the_rate_and_those_nobody_read_are_skipped(clock, monkeypatch):
    monkeypatch.setattr(pattern_reader, "draw_pattern", lambda number, _: number)
    reader = PatternReader(SMALL, clock)
    read = [picture_from(reader) for _ in range(3)]
    assert clock.passed_s == pytest.approx(2 / 25)
    clock.passed_s += 10.01
    read += [picture_from(reader) for _ in range(2)]
    assert read == [0, 1, 2, 252, 253]
    reader.release()
    assert not reader.grab()


def test_the_bar_moves_and_the_number_is_drawn():
    images = [draw_pattern(number, SMALL) for number in (0, 1, 50)]
    assert all(image.shape == (43, 67, 3) and image.dtype == np.uint8 for image in images)
    assert (images[0][0] != images[2][0]).any()  # the first row has only the bar
    assert (images[0] == 255).any(axis=2).any()  # the digits are white
    assert (draw_pattern(6, SMALL) != draw_pattern(9, SMALL)).any()


@pytest.mark.live
def test_the_pattern_is_a_live_source_of_the_wanted_size():
    with open_source("test://", fps=20, max_frames=3, wanted=SMALL) as frames:
        assert frames.is_live
        assert [frame.image.shape for frame in frames] == [(43, 67, 3)] * 3
