"""Which pictures of a live source are kept: every policy, on times that the test makes up."""

import random
from itertools import pairwise

import numpy as np
import pytest

from mod_edge.errors import ConfigError
from mod_edge.runtime.capture.frame_queue import FrameQueue
from mod_edge.runtime.capture.source import EVERY, NEWEST, Keep, parse_keep
from tests.runtime.capture.scripted_camera import NOON

NO_IMAGE = np.zeros((1, 1, 3), np.uint8)


def arrive(queue, time_s):
    """A picture arrives; whether it is kept."""
    is_kept = queue.offer(time_s)
    if is_kept:
        queue.put(NO_IMAGE, NOON)
    return is_kept


def begun(keep, *, fps=2.0, settle_s=0.0):
    """A queue whose first frame arrived at 0 s and was taken."""
    queue = FrameQueue(keep, fps=fps, settle_s=settle_s)
    arrive(queue, 0.0)
    assert queue.take(settle_s).time_s == 0
    return queue


def counts_of(queue):
    counts = queue.counts(0)
    assert counts.num_taken + counts.num_discarded == counts.num_captured
    return counts


def test_a_fast_source_is_converted_once_per_instant_while_the_reader_is_in_time():
    queue, times_s, num_kept = begun(NEWEST), [], 0
    for number in range(1, 301):  # 10 s at 30/s
        num_kept += arrive(queue, number / 30)
        if (frame := queue.take(number / 30)) is not None:
            times_s.append(frame.time_s)
            assert abs(frame.captured_s - frame.time_s) <= 0.5 / 30 + 1e-9
    assert times_s == [instant / 2 for instant in range(1, 21)]
    assert num_kept == 20
    assert counts_of(queue).num_between == 280


def test_a_source_of_the_models_rate_loses_no_frame_to_jitter():
    rng, queue = random.Random(3), begun(NEWEST)
    for number in range(1, 200):
        now_s = number / 2 + rng.uniform(-0.2, 0.2)
        assert arrive(queue, now_s)
        assert queue.take(now_s).time_s == number / 2
    assert counts_of(queue).num_discarded == 0


def test_a_slow_reader_gets_the_newest_picture_and_missed_instants_are_dropped():
    queue = begun(NEWEST)
    for number in range(1, 61):  # 2 s, four instants
        arrive(queue, number / 30)
    frame = queue.take(2.0)
    assert frame.captured_s == 2.0
    assert frame.time_s == 2.0
    assert counts_of(queue).num_dropped == 3


def test_a_queue_keeps_one_frame_per_instant_and_drops_its_oldest():
    queue = begun(Keep("queue", 3))
    for number in range(1, 91):  # 3 s, six instants
        arrive(queue, number / 30)
    times_s = [queue.take(3.0).time_s for _ in range(3)]
    assert times_s == [2.0, 2.5, 3.0]
    assert queue.take(3.0) is None
    assert counts_of(queue).num_dropped == 3


def test_a_source_slower_than_the_rate_is_never_repeated():
    queue, times_s = begun(NEWEST, fps=10), []
    for now_s in (0.7, 1.4, 2.1):
        arrive(queue, now_s)
        times_s.append(queue.take(now_s).time_s)
        assert queue.take(now_s + 0.1) is None
    assert times_s == [0.7, 1.4, 2.1]


@pytest.mark.parametrize("keep", [NEWEST, Keep("queue", 3)], ids=str)
def test_a_picture_whose_instant_is_taken_while_it_is_converted_is_discarded(keep):
    queue = begun(keep)
    assert arrive(queue, 0.5)
    is_kept = queue.offer(0.51)
    assert queue.take(0.51).time_s == 0.5
    if is_kept:
        queue.put(NO_IMAGE, NOON)
    assert queue.take(0.52) is None
    assert counts_of(queue).num_between == 1


def test_a_picture_converted_while_the_first_frame_is_taken_is_discarded():
    queue = FrameQueue(NEWEST, fps=2, settle_s=0.25)
    arrive(queue, 0.0)
    assert queue.offer(0.25)
    assert queue.take(0.25).time_s == 0
    queue.put(NO_IMAGE, NOON)
    assert queue.take(0.26) is None
    assert counts_of(queue).num_between == 1


def test_what_was_buffered_before_the_first_frame_is_discarded():
    queue = FrameQueue(Keep("queue", 5), fps=2, settle_s=0.25)
    for number in range(40):  # within 0.2 s
        arrive(queue, number / 200)
    assert not queue.is_ready(0.24)
    assert queue.take(0.24) is None
    assert queue.take(0.25).captured_s == 39 / 200
    assert counts_of(queue).num_settling == 39


def test_what_was_buffered_during_a_gap_is_discarded_until_pictures_come_at_intervals():
    queue = begun(NEWEST, settle_s=0.25)
    for number in range(1, 61):
        arrive(queue, number / 30)
        queue.take(number / 30)
    assert queue.is_gap(12.0)
    queue.settle(12.0)
    for number in range(100):  # a backlog that takes longer than the time to settle
        arrive(queue, 12.0 + number / 200)
    assert not queue.is_ready(12.5)
    arrive(queue, 12.53)
    assert queue.take(12.53).captured_s == 12.53
    assert counts_of(queue).num_settling == 100


def test_a_source_that_is_faster_after_a_gap_is_taken_within_two_seconds():
    queue = begun(NEWEST, settle_s=0.25)
    for number in range(1, 20):
        arrive(queue, number / 5)
        queue.take(number / 5)
    queue.settle(10.0)
    taken_s = []
    for number in range(300):
        now_s = 10.0 + number / 60
        arrive(queue, now_s)
        if queue.take(now_s) is not None:
            taken_s.append(now_s)
    assert taken_s[0] <= 12.05
    assert len(taken_s) >= 5


def test_a_picture_that_waited_through_a_gap_is_stale():
    queue = begun(NEWEST)
    arrive(queue, 0.5)
    assert not queue.is_ready(20.0)
    assert queue.take(20.0) is None
    assert counts_of(queue).num_stale == 1


def test_a_camera_that_becomes_slow_is_no_row_of_gaps():
    queue = begun(NEWEST)
    now_s, gaps = 0.0, []
    for number in range(1, 100):
        now_s += 1 / 30 if number < 50 else 5.0
        gaps.append(queue.is_gap(now_s))
        arrive(queue, now_s)
    assert any(gaps)
    assert not any(gaps[-20:])


@pytest.mark.parametrize("keep", [NEWEST, Keep("queue", 1), Keep("queue", 7)], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_no_picture_is_lost_from_the_counts_and_no_frame_is_older_than_stated(keep, seed):
    rng, interval_s = random.Random(seed), 1 / 25
    queue = FrameQueue(keep, fps=2, settle_s=0.25)
    frames, reads_at_s = [], 0.0
    for number in range(3000):
        now_s = number * interval_s
        arrive(queue, now_s)
        counts_of(queue)
        while reads_at_s <= now_s:  # the reader was busy until then
            if (frame := queue.take(now_s)) is not None:
                frames.append(frame)
                bound_s = interval_s if keep == NEWEST else keep.num_frames / 2 + interval_s
                assert now_s - frame.captured_s <= bound_s
            reads_at_s += rng.choice([0.01, 0.3, 0.8, 2.0])
    assert len(frames) > 50
    assert all(a.time_s < b.time_s for a, b in pairwise(frames))
    assert all(a.captured_s < b.captured_s for a, b in pairwise(frames))
    assert [frame.index for frame in frames] == list(range(len(frames)))


@pytest.mark.parametrize("text", ["newest", "every", "queue:1", "queue:12"])
def test_a_policy_is_read_as_it_is_written(text):
    assert str(parse_keep(text)) == text


@pytest.mark.parametrize("text", ["", "queue", "queue:0", "queue:-1", "queue:2.5", "latest"])
def test_another_policy_is_an_error_that_lists_the_known_ones(text):
    with pytest.raises(ConfigError, match=r"wanted newest, every, or queue:N"):
        parse_keep(text)


def test_only_a_queue_has_a_length():
    assert Keep("every") == EVERY
    with pytest.raises(ConfigError, match="newest with num_frames=3"):
        Keep("newest", 3)
