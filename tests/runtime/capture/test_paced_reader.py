"""Bursts of pictures at the times of their stream."""

import pytest

from mod_edge.runtime.capture.paced_reader import PacedReader


class Burst:
    """A capture that has pictures with these timestamps at once; None is a grab that fails."""

    def __init__(self, times_s):
        self.times_s = list(times_s)
        self.now_s = 0.0
        self.is_released = False

    def grab(self):
        self.now_s = self.times_s.pop(0)
        return self.now_s is not None

    def retrieve(self):
        return True, self.now_s

    def get(self, _):
        return 1000 * self.now_s

    def release(self):
        self.is_released = True


def test_pictures_are_returned_at_their_times_and_a_late_one_delays_the_others(clock):
    reader = PacedReader(Burst([7.0, 7.5, None, 8.0, 8.5, 9.0]), 5.0, clock)
    returned_s = []
    for index in range(6):
        clock.passed_s += 2.0 if index == 4 else 0.0  # the next segment came late
        reader.grab()
        returned_s.append(clock.passed_s)
    assert returned_s == pytest.approx([0, 0.5, 0.5, 1, 3, 3.5])


def test_a_jump_of_the_timestamps_is_not_waited_for(clock):
    reader = PacedReader(Burst([7.0, 5000.0, 5000.5, 1.0, 1.5]), 5.0, clock)
    for _ in range(5):
        reader.grab()
    assert clock.passed_s == pytest.approx(1)


def test_a_segment_that_was_skipped_is_no_stall(clock):
    reader = PacedReader(Burst([7.0, 7.5, 14.0, 14.5]), 5.0, clock)
    for _ in range(4):
        reader.grab()
    assert clock.passed_s == pytest.approx(1)


def test_a_released_reader_returns_no_picture(clock):
    capture = Burst([7.0, 7.5])
    reader = PacedReader(capture, 5.0, clock)
    reader.release()
    assert capture.is_released
    assert not reader.grab()
