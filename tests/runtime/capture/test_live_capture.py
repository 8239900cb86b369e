"""The newest frames of a local MJPEG server and of captures that play a script."""

import itertools
import math
import re
import threading
import time
from dataclasses import replace

import cv2
import pytest

from mod_edge.errors import ConfigError, SourceError
from mod_edge.runtime.capture.live_capture import RETRY_S, LiveCapture
from mod_edge.runtime.capture.source import FILE, LIVE, Keep
from tests.runtime.capture.mjpeg_camera import MjpegServer
from tests.runtime.capture.numbered_video import number_in, picture_of

FAILS = (False, None)


class ScriptedCapture:
    """An open capture; the fixture `play` says what each read() returns."""

    def __init__(self, *_):
        self.num_read = 0

    def isOpened(self):  # noqa: N802 - OpenCV's name
        return True

    def read(self):
        self.num_read += 1
        return self.answer(self.num_read - 1)

    def release(self):
        pass


@pytest.fixture
def play(monkeypatch):
    """`play(answer)`: OpenCV opens a capture of which read number k, from 0, is `answer(k)`."""

    def set_answer(answer):
        scripted = type("Scripted", (ScriptedCapture,), {"answer": staticmethod(answer)})
        monkeypatch.setattr(cv2, "VideoCapture", scripted)
        monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda _: True)

    return set_answer


@pytest.mark.live
def test_a_slow_caller_gets_the_newest_frame_and_missed_instants_are_counted():
    with MjpegServer() as camera, LiveCapture(camera.url, fps=20) as live:
        frames = [next(live)]
        for _ in range(3):
            num_sent_before = camera.num_sent
            time.sleep(0.3)  # six instants
            frames.append(next(live))
            assert number_in(frames[-1].image) >= num_sent_before  # sent while the caller was busy
        instants = [round(frame.time_s * 20) for frame in frames]
        assert live.is_live
        assert live.num_dropped == instants[-1] - 3 >= 15 - 3
        assert [frame.index for frame in frames] == [0, 1, 2, 3]


@pytest.mark.live
def test_frame_times_lie_on_the_grid_from_zero():
    with MjpegServer() as camera, LiveCapture(camera.url, fps=10, max_frames=5) as live:
        started_s = time.monotonic()
        frames = list(live)
        lasted_s = time.monotonic() - started_s
        instants = [frame.time_s * 10 for frame in frames]
        assert instants == pytest.approx([round(instant) for instant in instants])
        assert instants[0] == 0
        assert all(a < b for a, b in itertools.pairwise(instants))
        assert lasted_s >= frames[-1].time_s
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
    policy = replace(LIVE, keep=Keep("queue", 99))
    with (
        MjpegServer(bad={12: bad, 13: bad, 20: bad}) as camera,
        LiveCapture(camera.url, fps=500, max_frames=30, policy=policy) as live,
    ):
        numbers = [number_in(frame.image) for frame in live]
        (warning,) = live.warnings
    assert numbers == [number for number in range(33) if number not in (12, 13, 20)]
    assert re.fullmatch(r"http://.*: [1-3] reads? gave no picture and w\w+ skipped", warning)


@pytest.mark.live
def test_a_pause_shorter_than_the_timeout_is_waited_for():
    policy = replace(LIVE, keep=Keep("queue", 99), stall_s=2.0)
    with MjpegServer() as camera, LiveCapture(camera.url, fps=500, policy=policy) as live:
        next(live)
        camera.is_silent.set()
        threading.Timer(0.8, camera.is_silent.clear).start()
        times_s = [next(live).time_s for _ in range(50)]
    gaps_s = [b - a for a, b in itertools.pairwise(times_s)]
    assert 0.5 < max(gaps_s) < 2.0
    assert live.warnings == []


@pytest.mark.live
def test_a_silent_stream_is_an_error_within_the_timeout():
    with (
        MjpegServer() as camera,
        LiveCapture(camera.url, fps=20, policy=replace(LIVE, stall_s=0.4)) as live,
    ):
        next(live)
        camera.is_silent.set()
        started_s = time.monotonic()
        with pytest.raises(
            SourceError, match=r"delivered no frame for 0\.\d s \(allowed: 0\.4 s\)"
        ):
            list(live)
        assert time.monotonic() - started_s < 2.0


@pytest.mark.live
def test_a_policy_lets_frames_wait_for_a_slow_caller():
    policy = replace(LIVE, keep=Keep("queue", 4))
    with MjpegServer() as camera, LiveCapture(camera.url, fps=200, policy=policy) as live:
        next(live)
        time.sleep(0.4)  # 16 more come in, 4 of them may wait
        waiting = [number_in(next(live).image) for _ in range(4)]
    assert waiting == list(range(waiting[0], waiting[0] + 4))


@pytest.mark.parametrize(("allowed", "num_frames"), [(3, 6), (2, 2)])
def test_a_policy_says_how_many_failed_reads_end_a_source(play, allowed, num_frames):
    play(lambda k: FAILS if k in (2, 3) or k > 7 else (True, picture_of(k)))
    policy = replace(LIVE, keep=Keep("queue", 9), max_failed_reads=allowed, is_finite=True)
    with LiveCapture("rtsp://camera/1", fps=500, policy=policy) as live:
        assert len(list(live)) == num_frames
        ended, *skipped = live.warnings
    assert re.search(rf"rtsp://camera/1 ended after .*; {num_frames} frames used", ended)
    was_skipped = ["rtsp://camera/1: 2 reads gave no picture and were skipped"]
    assert skipped == (was_skipped if allowed == 3 else [])


def test_failed_reads_between_pictures_are_told_at_once(play):
    play(lambda k: FAILS if k == 2 else (True, picture_of(k)))
    with LiveCapture(
        0, fps=500, max_frames=4, policy=replace(LIVE, keep=Keep("queue", 99))
    ) as live:
        assert len(list(live)) == 4
        assert live.warnings == ["camera 0: 1 read gave no picture and was skipped"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (0, "camera 0 ended after 3 frames .*check its cable and power"),
        ("rtsp://me:secret@camera/1", r"rtsp://\*\*\*@camera/1 ended after 3 frames .*its server"),
        ("v4l2src ! appsink", "the GStreamer pipeline ended after 3 frames .*gst-launch-1.0"),
    ],
)
def test_a_live_source_that_ends_by_itself_is_an_error(play, source, says):
    play(lambda k: (True, picture_of(k)) if k < 3 else FAILS)
    policy = replace(LIVE, keep=Keep("queue", 9), max_failed_reads=3)
    with (
        LiveCapture(source, fps=500, policy=policy) as live,
        pytest.raises(SourceError, match=says),
    ):
        list(live)
    assert live.num_frames == 3


def test_failed_reads_that_return_at_once_do_not_keep_a_core_busy(play):
    asked_s = []

    def fail(_):
        asked_s.append(time.monotonic())
        return FAILS

    play(fail)
    with (
        LiveCapture(0, fps=2) as live,
        pytest.raises(SourceError, match="50 reads in a row failed"),
    ):
        next(live)
    assert len(asked_s) == LIVE.max_failed_reads == 50
    assert all(b - a >= RETRY_S for a, b in itertools.pairwise(asked_s))


def test_a_picture_that_comes_after_the_timeout_is_a_stall(play):
    policy = replace(LIVE, keep=Keep("queue", 9), stall_s=0.3)

    def time_out_at_three(k):
        time.sleep(0.4 if k == 3 else 0)  # OpenCV then returns a picture that its decoder had
        return True, picture_of(k)

    play(time_out_at_three)
    numbers = []
    with (
        LiveCapture("rtsp://camera/1", fps=500, policy=policy) as live,
        pytest.raises(SourceError, match=r"delivered no frame for 0\.\d s \(allowed: 0\.3 s\)"),
    ):
        numbers.extend(number_in(frame.image) for frame in live)
    assert numbers == [0, 1, 2]


def test_bad_pictures_alone_are_a_stall_after_the_timeout(play):
    def fail_slowly(_):
        time.sleep(0.05)
        return FAILS

    play(fail_slowly)
    says = r"delivered no frame for 0\.\d s \(allowed: 0\.3 s, \d+ reads failed\) after 0 frames"
    policy = replace(LIVE, stall_s=0.3)
    with LiveCapture(0, fps=2, policy=policy) as live, pytest.raises(SourceError, match=says):
        next(live)


def test_a_failure_in_the_reading_thread_reaches_the_caller(play):
    def unplug(_):
        raise cv2.error("unplugged")

    play(unplug)
    with LiveCapture(0, fps=10) as live, pytest.raises(SourceError, match="unplugged") as caught:
        next(live)
    assert isinstance(caught.value.__cause__, cv2.error)


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


@pytest.mark.parametrize("policy", [FILE, replace(LIVE, stall_s=math.inf)], ids=["file", "inf"])
def test_a_policy_under_which_a_live_source_never_delivers_or_stalls_is_an_error(policy):
    with pytest.raises(ConfigError, match=r"a live source cannot keep .* wanted newest or queue:N"):
        LiveCapture("http://127.0.0.1:1/a", fps=2, policy=policy)


# ---- without waiting ----


@pytest.fixture
def camera_and_clock(play, monkeypatch):
    """`arrive()`: a picture is read, at the time `now_s[0]` of a clock that stands still."""
    pictures, now_s = threading.Semaphore(0), [100.0]
    monkeypatch.setattr("mod_edge.runtime.capture.live_capture.time.monotonic", lambda: now_s[0])
    play(lambda k: (True, picture_of(k % 200)) if pictures.acquire(timeout=0.05) else FAILS)
    policy = replace(LIVE, max_failed_reads=10**6)
    with LiveCapture("rtsp://camera/1", fps=2, policy=policy) as live:

        def arrive():
            before = live._num_arrived
            pictures.release()
            while live._num_arrived == before:
                time.sleep(0.01)

        yield live, arrive, now_s


@pytest.mark.live
def test_a_source_is_ready_once_its_next_frame_takes_no_waiting(camera_and_clock):
    live, arrive, now_s = camera_and_clock
    assert not live.is_ready
    arrive()
    now_s[0] += 0.2
    assert not live.is_ready  # what FFmpeg had buffered may still come
    now_s[0] += 0.1
    assert live.is_ready
    assert next(live).time_s == 0
    arrive()
    now_s[0] += 0.4
    assert not live.is_ready  # before its instant
    now_s[0] += 0.1
    assert live.is_ready
    assert next(live).time_s == 0.5
    now_s[0] += 0.6
    assert not live.is_ready  # no frame has come


@pytest.mark.live
def test_instants_without_a_frame_count_as_dropped_only_if_the_caller_was_busy(camera_and_clock):
    live, arrive, now_s = camera_and_clock
    arrive()
    now_s[0] += 0.3
    next(live)
    for _ in range(3):
        now_s[0] += 0.9
        assert not live.is_ready
    arrive()  # 2.7 s after the first frame
    assert live.is_ready
    assert (next(live).time_s, live.num_dropped) == (2.5, 0)
    arrive()
    now_s[0] += 3.0
    assert live.is_ready
    assert (next(live).time_s, live.num_dropped) == (5.5, 5)


@pytest.mark.live
def test_a_source_that_has_stalled_or_was_closed_is_ready(camera_and_clock):
    live, arrive, now_s = camera_and_clock
    arrive()
    now_s[0] += 0.3
    next(live)
    assert not live.is_ready
    now_s[0] += 5.0
    assert live.is_ready
    with pytest.raises(SourceError, match=r"delivered no frame for 5\.3 s"):
        next(live)
    live.close()
    assert live.is_ready
    assert list(live) == []
