"""The clock of a file where its timestamps leave gaps or start before zero."""

import pytest

from mod_edge.runtime.capture.frame_clock import MAX_FRAME_S, FrameClock

HOUR_MS = 3_600_000


def clock_after(positions_ms, header_fps=10.0):
    """The clock and the seconds of each frame."""
    clock = FrameClock(header_fps)
    return clock, [clock.advance(position_ms) for position_ms in positions_ms]


def test_time_continues_after_a_gap_at_the_interval_of_the_frames_before_it():
    clock, times_s = clock_after([0, 40, 80, HOUR_MS, HOUR_MS + 40], header_fps=10.0)
    assert times_s == pytest.approx([0.0, 0.04, 0.08, 0.12, 0.16])
    assert clock.num_gaps == 1
    assert clock.skipped_s == pytest.approx(3600 - 0.12)


def test_every_gap_is_counted_and_what_was_skipped_is_the_sum():
    clock, times_s = clock_after([0, 100, HOUR_MS, HOUR_MS + 100, 3 * HOUR_MS, 3 * HOUR_MS + 100])
    assert times_s == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert clock.num_gaps == 2
    assert clock.skipped_s == pytest.approx(3 * 3600 - 0.4)


@pytest.mark.parametrize(
    ("frame_s", "header_fps"),
    [
        (MAX_FRAME_S, 25.0),  # a slide of ten minutes in a file whose header has a usual rate
        (MAX_FRAME_S, 0.0),
        (3000.0, 1 / 300),  # ten times the header's five minutes
    ],
)
def test_a_frame_may_last_ten_minutes_or_ten_average_frames(frame_s, header_fps):
    clock, times_s = clock_after([0, 1000 * frame_s], header_fps)
    assert times_s == [0.0, frame_s]
    assert clock.num_gaps == 0
    assert clock_after([0, 1000 * frame_s + 1], header_fps)[0].num_gaps == 1


def test_one_timestamp_far_ahead_is_no_gap():
    clock, times_s = clock_after([0, 100, HOUR_MS, 300, 400])
    assert times_s == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert (clock.num_gaps, clock.skipped_s) == (0, pytest.approx(0.0))


@pytest.mark.parametrize("back_ms", [6_000, 30_000])
def test_one_timestamp_that_jumps_back_long_after_a_gap_does_not_undo_it(back_ms):
    gap_ms = 605_000  # less than back_ms longer than a frame may last
    later_ms = list(range(gap_ms, gap_ms + 60_000, 100))
    positions_ms = [0, 100, *later_ms, later_ms[-1] - back_ms, later_ms[-1] + 200]
    clock, times_s = clock_after(positions_ms)
    assert clock.num_gaps == 1
    assert times_s[-2:] == pytest.approx([times_s[-3], times_s[-3] + 0.2])


def test_after_a_gap_timestamps_may_jump_back_as_before():
    joined_ms = [HOUR_MS + 5000, *range(0, 3000, 100)]
    clock, times_s = clock_after([*range(0, 2000, 100), HOUR_MS, *joined_ms])
    assert times_s == sorted(times_s)
    assert clock.num_gaps == 1
    assert 2.0 + 5.0 + 1.5 < times_s[-1] < 2.0 + 5.0 + 3.0


def test_timestamps_that_start_below_zero_are_those_of_the_first_frames():
    # FFmpeg takes the start of a slow Matroska file with B-frames for that of its fourth frame
    positions_ms = [0, -20_000, -10_000, 0, 10_000, 20_000]
    assert clock_after(positions_ms, header_fps=0.1)[1] == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
