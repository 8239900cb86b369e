"""The newest frames of a local MJPEG server and of captures that play a script."""

import itertools
import math
import re
import threading
from dataclasses import replace

import cv2
import pytest

from mod_edge.errors import ConfigError, SourceError
from mod_edge.runtime.capture.capture_thread import RETRY_S
from mod_edge.runtime.capture.live_capture import LiveCapture
from mod_edge.runtime.capture.live_source import next_frames
from mod_edge.runtime.capture.source import FILE, LIVE, Keep
from tests.bounded import await_until
from tests.runtime.capture.mjpeg_camera import MjpegServer
from tests.runtime.capture.numbered_video import number_in
from tests.runtime.capture.scripted_camera import NO_PICTURE

QUEUE = replace(LIVE, keep=Keep("queue", 99))
AT_ONCE = replace(QUEUE, settle_s=0.0)


@pytest.mark.live
def test_a_slow_caller_gets_the_newest_frame_and_missed_instants_are_counted():
    with MjpegServer() as camera, LiveCapture(camera.url, fps=20) as live:
        frames = [next(live)]
        for _ in range(3):
            num_sent, num_dropped = camera.num_sent, live.num_dropped
            await_until(lambda before=num_dropped: live.num_dropped >= before + 3)
            frames.append(next(live))
            assert number_in(frames[-1].image) >= num_sent  # sent while the caller was busy
        instants = [round(frame.time_s * 20) for frame in frames]
        assert live.is_live
        assert 9 <= live.num_dropped <= instants[-1] - 3  # the server may have left one out
        counts = live.counts
        assert counts.num_taken + counts.num_discarded == counts.num_captured
        assert [frame.index for frame in frames] == [0, 1, 2, 3]


@pytest.mark.live
def test_frame_times_lie_on_the_grid_from_zero():
    with MjpegServer() as camera, LiveCapture(camera.url, fps=10, max_frames=5) as live:
        frames = list(live)
        instants = [frame.time_s * 10 for frame in frames]
        assert instants == pytest.approx([round(instant) for instant in instants])
        assert instants[0] == 0
        assert all(a < b for a, b in itertools.pairwise(instants))
        for frame in frames:  # its instant is at most half an interval later, or one earlier
            assert -0.051 <= frame.captured_s - frames[0].captured_s - frame.time_s <= 0.101
        assert live.warnings == []


@pytest.mark.live
def test_a_camera_slower_than_the_rate_never_repeats_a_frame():
    with MjpegServer(fps=20) as camera, LiveCapture(camera.url, fps=200, max_frames=8) as live:
        numbers = [number_in(frame.image) for frame in live]
    assert all(a < b for a, b in itertools.pairwise(numbers))


@pytest.mark.live
def test_frames_buffered_before_the_first_one_are_discarded():
    with MjpegServer(burst=60) as camera, LiveCapture(camera.url, fps=10) as live:
        assert number_in(next(live).image) >= 30  # a plain read() returns picture 0


@pytest.mark.live
def test_a_stream_that_its_server_closes_is_an_error():
    with MjpegServer() as camera, LiveCapture(camera.url, fps=20) as live:
        next(live)
        camera.is_over.set()
        with pytest.raises(SourceError, match=r"camera\.mjpg ended after \d+ frames \(50 reads"):
            list(live)
        assert live.warnings == []


@pytest.mark.live
@pytest.mark.parametrize("bad", [b"", bytes(700)], ids=["empty", "zeros"])
def test_a_bad_picture_between_good_ones_is_skipped(bad):
    with (
        MjpegServer(bad={22: bad, 23: bad, 30: bad}) as camera,
        LiveCapture(camera.url, fps=500, max_frames=30, policy=QUEUE) as live,
    ):
        numbers = [number_in(frame.image) for frame in live]
        (warning,) = live.warnings
    assert {22, 23, 30}.isdisjoint(numbers)
    assert re.fullmatch(r"http://.*: [1-3] reads? gave no picture and w\w+ skipped", warning)


@pytest.mark.live
def test_a_pause_shorter_than_the_timeout_is_waited_for():
    policy, times_s = replace(QUEUE, stall_s=2.0), [0.0]
    with (
        MjpegServer() as camera,
        LiveCapture(camera.url, fps=500, policy=policy, max_frames=400) as live,
    ):
        next(live)
        camera.is_silent.set()
        threading.Timer(0.8, camera.is_silent.clear).start()
        while times_s[-1] - times_s[-2:][0] < 0.5:
            times_s.append(next(live).time_s)
    assert times_s[-1] - times_s[-2] < 2.0


@pytest.mark.live
def test_a_silent_stream_is_an_error_within_the_timeout():
    with (
        MjpegServer() as camera,
        LiveCapture(camera.url, fps=20, policy=replace(LIVE, stall_s=0.4)) as live,
    ):
        next(live)
        camera.is_silent.set()
        with pytest.raises(SourceError) as caught:
            list(live)
    says = r"delivered no frame for (\d+\.\d) s \(allowed: 0\.4 s\)"
    silent = re.search(says, str(caught.value))
    assert 0.4 <= float(silent[1]) < 30  # FFmpeg's own time-out


def test_a_policy_lets_frames_wait_for_a_slow_caller(camera):
    live = camera.live(policy=replace(AT_ONCE, keep=Keep("queue", 4)))
    camera.sends(0, every_s=0.0)
    next(live)
    camera.sends(*range(1, 17), every_s=0.5)
    assert [number_in(next(live).image) for _ in range(4)] == [13, 14, 15, 16]
    assert live.num_dropped == 12


@pytest.mark.parametrize(("allowed", "num_frames"), [(3, 6), (2, 2)])
def test_a_policy_says_how_many_failed_reads_end_a_source(camera, allowed, num_frames):
    policy = replace(AT_ONCE, max_failed_reads=allowed, is_finite=True)
    live = camera.live("rtsp://camera/1", policy=policy)
    camera.sends(0, every_s=0.0)
    assert next(live).time_s == 0
    camera.sends(1, every_s=0.5)
    camera.fails(2)
    if allowed == 3:
        camera.sends(2, 3, 4, 5, every_s=0.5)
        camera.fails(3)
    assert 1 + len(list(live)) == num_frames
    ended, *skipped = live.warnings
    assert re.search(rf"rtsp://camera/1 ended after .*; {num_frames} frames used", ended)
    was_skipped = ["rtsp://camera/1: 2 reads gave no picture and were skipped"]
    assert skipped == (was_skipped if allowed == 3 else [])


def test_failed_reads_between_pictures_are_told_at_once(camera):
    live = camera.live(policy=AT_ONCE)
    camera.sends(0, every_s=0.0)
    next(live)
    camera.sends(1, every_s=0.5)
    camera.fails()
    camera.sends(2, every_s=0.5)
    assert [next(live).time_s for _ in range(2)] == [0.5, 1.0]
    assert live.warnings == ["camera 0: 1 read gave no picture and was skipped"]
    assert live.counts.num_skipped_reads == 1


def test_a_picture_that_cannot_be_converted_is_a_failed_read(camera):
    live = camera.live(policy=replace(AT_ONCE, max_failed_reads=3))
    camera.sends(0, every_s=0.0)
    next(live)
    camera.sends(NO_PICTURE, NO_PICTURE, 1, every_s=0.5)
    assert number_in(next(live).image) == 1
    assert live.counts.num_captured == live.counts.num_taken == 2
    camera.sends(NO_PICTURE, NO_PICTURE, NO_PICTURE, every_s=0.5)
    with pytest.raises(SourceError, match=r"3 reads in a row failed"):
        next(live)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (0, "camera 0 ended after 3 frames .*check its cable and power"),
        ("rtsp://me:secret@camera/1", r"rtsp://\*\*\*@camera/1 ended after 3 frames .*its server"),
        ("v4l2src ! appsink", "the GStreamer pipeline ended after 3 frames .*gst-launch-1.0"),
    ],
)
def test_a_live_source_that_ends_by_itself_is_an_error_that_names_the_option(camera, source, says):
    live = camera.live(source, policy=replace(AT_ONCE, max_failed_reads=3))
    camera.sends(0, every_s=0.0)
    next(live)
    camera.sends(1, 2, every_s=0.5)
    camera.fails(3)
    with pytest.raises(SourceError, match=rf"{says}.*; --reconnect 60s opens a lost source again"):
        list(live)
    assert live.num_frames == 3


def test_failed_reads_that_return_at_once_do_not_keep_a_core_busy(camera):
    live = camera.live()
    began_s = camera.clock.passed_s
    camera.fails(50)
    with pytest.raises(SourceError, match="50 reads in a row failed"):
        next(live)
    assert camera.clock.passed_s - began_s >= 49 * RETRY_S


def test_a_picture_that_comes_after_the_timeout_is_a_stall(camera):
    live = camera.live("rtsp://camera/1", policy=AT_ONCE)
    camera.sends(0, every_s=0.0)
    next(live)
    camera.sends(1, 2, every_s=0.5)
    camera.sends(3, every_s=5.5)  # OpenCV then returns a picture that its decoder had
    says = r"delivered no frame for 5\.5 s \(allowed: 5 s\) after 3 frames.*; --reconnect 60s"
    with pytest.raises(SourceError, match=says):
        list(live)
    assert live.counts.num_captured == 3


def test_bad_pictures_alone_are_a_stall_after_the_timeout(camera):
    live = camera.live()
    camera.fails(6, every_s=0.9)
    says = r"delivered no frame for 5\.\d s \(allowed: 5 s, \d reads failed\) after 0 frames"
    with pytest.raises(SourceError, match=says):
        next(live)


def test_a_failure_in_the_reading_thread_reaches_the_caller(camera):
    live = camera.live()
    camera.breaks(cv2.error("unplugged"))
    with pytest.raises(SourceError, match="unplugged") as caught:
        next(live)
    assert isinstance(caught.value.__cause__, cv2.error)
    with pytest.raises(SourceError, match="unplugged"):
        next(live)  # the end marker stays


@pytest.mark.live
def test_close_ends_the_thread_and_the_iteration():
    with MjpegServer() as camera:
        with LiveCapture(camera.url, fps=10) as live:
            next(live)
        assert "mod-edge capture" not in {thread.name for thread in threading.enumerate()}
        assert list(live) == []


def test_a_missing_camera_is_an_error_that_says_what_to_check(capfd):
    with pytest.raises(SourceError, match=r"camera 97 cannot be opened.*/dev/video.*group video"):
        LiveCapture(97, fps=2)
    assert capfd.readouterr() == ("", "")


def test_the_password_of_an_address_is_not_printed():
    with pytest.raises(SourceError, match=r"rtsp://\*\*\*@127\.0\.0\.1:1/a cannot") as caught:
        LiveCapture("rtsp://me:secret@127.0.0.1:1/a", fps=2)
    assert "secret" not in str(caught.value)


def test_a_stall_time_that_is_not_positive_is_an_error():
    with pytest.raises(ConfigError, match="stall_s=0: wanted more than 0 seconds"):
        replace(LIVE, stall_s=0)


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (FILE, "every frame cannot be kept; keep newest, or queue:N"),
        (replace(LIVE, stall_s=math.inf), "stall_s=inf for a live source"),
    ],
    ids=["file", "inf"],
)
def test_a_policy_under_which_a_live_source_never_delivers_or_stalls_is_an_error(policy, says):
    with pytest.raises(ConfigError, match=says):
        LiveCapture("http://127.0.0.1:1/a", fps=2, policy=policy)


# ---- without waiting ----


def test_a_source_is_ready_once_its_next_frame_takes_no_waiting(camera):
    live = camera.live()
    assert not live.is_ready
    camera.sends(0, every_s=0.1)
    camera.clock.passed_s += 0.2
    assert not live.is_ready  # what FFmpeg had buffered may still come
    camera.clock.passed_s += 0.1
    assert live.is_ready
    assert next(live).time_s == 0
    assert not live.is_ready
    camera.sends(1, every_s=0.4)
    assert live.is_ready
    assert next(live).time_s == 0.5
    camera.clock.passed_s += 0.6
    assert not live.is_ready  # no frame has come


def test_frames_are_taken_without_waiting_one_that_became_too_old_is_not(camera):
    live = camera.live(policy=replace(AT_ONCE, keep=Keep("queue", 4)))
    assert live.take(3) == []
    camera.sends(0, every_s=0.0)
    assert [frame.time_s for frame in live.take(3)] == [0.0]
    camera.sends(1, 2, 3, 4, every_s=0.5)
    assert [frame.time_s for frame in live.take(3)] == [0.5, 1.0, 1.5]
    assert live.is_ready
    camera.clock.passed_s += 4.9  # as in a suspended process
    assert next_frames(live, 3, waits=False) == ([], [])
    camera.close()
    assert live.take(3) is None
    assert next_frames(live, 3) is None


def test_instants_without_a_picture_are_not_dropped(camera):
    live = camera.live()
    camera.sends(0, every_s=0.0)
    next(live)
    camera.sends(1, every_s=2.7)
    assert (next(live).time_s, live.num_dropped) == (3.0, 0)
    camera.sends(2, 3, 4, every_s=0.5)
    assert (next(live).time_s, live.num_dropped) == (4.5, 2)


def test_a_source_that_has_stalled_or_was_closed_is_ready(camera):
    live = camera.live()
    camera.sends(0, every_s=0.0)
    next(live)
    assert not live.is_ready
    camera.clock.passed_s += 5.0
    assert live.is_ready
    with pytest.raises(SourceError, match=r"delivered no frame for 5\.\d s"):
        next(live)
    camera.close()
    assert live.is_ready
    assert list(live) == []
