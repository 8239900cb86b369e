"""Capture from real files and a local MJPEG server; every picture shows its own number."""

import http.server
import itertools
import math
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from mod_edge.errors import ConfigError, SourceError
from mod_edge.runtime.capture.frame_clock import FrameClock
from mod_edge.runtime.capture.live_capture import LiveCapture
from mod_edge.runtime.capture.source import CAMERA, FILE, STREAM
from mod_edge.runtime.capture.video_file import VideoFile

CLIP = Path(__file__).resolve().parents[2] / "data" / "box.mp4"  # 457 frames, 29.97/s
NTSC_FPS = 30000 / 1001
VIDEO_CAPTURE = cv2.VideoCapture
BLOCK = 16  # side of one bit in pixels: JPEG at 4:2:0 keeps it black or white
SIDE_BITS = 4
TIMEOUT_S = 60


def picture_of(number):
    """(64, 64, 3) uint8 showing the number's 16 bits as black and white blocks."""
    bits = [(number >> bit) & 1 for bit in range(SIDE_BITS**2)]
    blocks = np.array(bits, dtype=np.uint8).reshape(SIDE_BITS, SIDE_BITS) * 255
    return np.repeat(np.kron(blocks, np.ones((BLOCK, BLOCK), np.uint8))[..., None], 3, axis=2)


def number_in(image):
    means = image.reshape(SIDE_BITS, BLOCK, SIDE_BITS, BLOCK, 3).mean(axis=(1, 3, 4))
    return sum(1 << bit for bit, mean in enumerate(means.flat) if mean > 127)


def write_video(path, *, fps, num_frames, codec="MJPG"):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, (64, 64))
    assert writer.isOpened()
    for number in range(num_frames):
        writer.write(picture_of(number))
    writer.release()
    return path


def numbers_and_times(path, **options):
    with VideoFile(path, **options) as video:
        return [(number_in(frame.image), frame.time_s) for frame in video]


class CaptureWrapper:
    """Wraps a cv2.VideoCapture, because a subclass would crash the process."""

    def __init__(self, *arguments):
        self.capture = VIDEO_CAPTURE(*arguments)

    def __getattr__(self, name):
        return getattr(self.capture, name)


# ---- files ----


def test_29_97_frames_per_second_never_drift(tmp_path):
    path = write_video(tmp_path / "ntsc.avi", fps=NTSC_FPS, num_frames=600)
    seen = numbers_and_times(path, fps=2)
    # the first frame at or after each half second; at 29 frames/s, frame 580 would be the last
    assert seen == [(int(np.ceil(k / 2 * NTSC_FPS - 1e-3)), k / 2) for k in range(40)]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.avi", "MJPG"), ("a.mkv", "MJPG"), ("a.mp4", "mp4v")]
)
def test_at_the_videos_own_rate_every_frame_is_returned_once(tmp_path, name, codec):
    path = write_video(tmp_path / name, fps=NTSC_FPS, num_frames=40, codec=codec)
    with VideoFile(path, fps=NTSC_FPS) as video:
        frames = list(video)
        assert [number_in(frame.image) for frame in frames] == list(range(40))
        assert [frame.index for frame in frames] == list(range(40))
        assert video.warnings == []


def test_timestamps_rounded_to_milliseconds_do_not_skip_a_frame(tmp_path):
    path = write_video(
        tmp_path / "rounded.mkv", fps=30, num_frames=61
    )  # 1/3 s is stored as 0.333 s
    assert [number for number, _ in numbers_and_times(path, fps=3)] == [0, 10, 20, 30, 40, 50, 60]


def test_a_video_slower_than_the_rate_repeats_frames_and_keeps_its_clock(tmp_path):
    path = write_video(tmp_path / "slow.avi", fps=2, num_frames=5)
    seen = numbers_and_times(path, fps=5)
    assert seen == [(-(-2 * k // 5), k / 5) for k in range(11)]


def test_only_returned_frames_are_converted(tmp_path, monkeypatch):
    num_retrieved = itertools.count()

    class Counting(CaptureWrapper):
        def retrieve(self):
            next(num_retrieved)
            return self.capture.retrieve()

    path = write_video(tmp_path / "fast.avi", fps=20, num_frames=60)
    monkeypatch.setattr(cv2, "VideoCapture", Counting)
    assert len(numbers_and_times(path, fps=2)) == next(num_retrieved) == 6


def test_the_clip_yields_two_frames_per_second_and_drops_none():
    with VideoFile(CLIP, fps=2) as video:
        frames = list(video)
        assert [frame.time_s for frame in frames] == [k / 2 for k in range(31)]
        assert frames[0].image.shape == (288, 384, 3)
        assert (video.num_frames, video.num_dropped, video.warnings) == (31, 0, [])


def test_max_frames_ends_without_a_warning(tmp_path):
    path = write_video(tmp_path / "a.avi", fps=10, num_frames=50)
    with VideoFile(path, fps=10, max_frames=3) as video:
        assert [frame.index for frame in video] == [0, 1, 2]
        assert video.warnings == []


def test_a_truncated_recording_is_used_with_one_warning_about_the_missing_part(tmp_path):
    path = write_video(tmp_path / "cut.avi", fps=10, num_frames=50)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with VideoFile(path, fps=10) as video:
        num_read = len([number_in(frame.image) for frame in video])
        assert 10 < num_read < 30
        (warning,) = video.warnings
    assert f"read {num_read} of 50 frames, {num_read / 10:.1f} s of 5.0 s" in warning


def test_damage_in_the_middle_loses_only_the_damaged_frames(tmp_path, capfd):
    damaged = bytearray(CLIP.read_bytes())
    start = len(damaged) * 2 // 5
    damaged[start : start + 20_000] = bytes(i * 7919 % 256 for i in range(20_000))
    path = tmp_path / "damaged.mp4"
    path.write_bytes(damaged)
    with VideoFile(path, fps=2) as video:
        times_s = [frame.time_s for frame in video]
        (warning,) = video.warnings
    assert times_s == [k / 2 for k in range(31)]  # 13 when the first failed grab() was the end
    assert "is damaged" in warning
    capfd.readouterr()  # discards FFmpeg's messages


OPEN_EACH = """
import sys
from mod_edge.errors import SourceError
from mod_edge.runtime.capture.video_file import VideoFile

for path in sys.argv[1:]:
    try:
        VideoFile(path, fps=2)
    except SourceError as exc:
        print(exc)
"""


def test_a_file_that_is_not_a_video_is_an_error_and_nothing_else_is_printed(tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("not a video\n")
    headless = write_video(tmp_path / "headless.mp4", fps=10, num_frames=300, codec="mp4v")
    whole = headless.read_bytes()
    headless.write_bytes(whole[: whole.index(b"moov")])  # cuts off the index at the end
    # In its own process: FFmpeg must not have been silenced before, as the command line does, and
    # its log level cannot be changed later.
    done = subprocess.run(
        [sys.executable, "-c", OPEN_EACH, str(text), str(headless)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("OPENCV_")},
    )
    assert done.stderr == ""
    of_text, of_headless = done.stdout.splitlines()
    assert re.search(r"notes\.mp4 cannot be read as a video.*b'not a vi'", of_text)
    assert re.search(r"headless\.mp4 .*moov atom not found", of_headless)


def test_paths_that_are_not_readable_files_are_errors(tmp_path):
    with pytest.raises(SourceError, match="there is no video file"):
        VideoFile(tmp_path / "missing.mp4", fps=2)
    with pytest.raises(SourceError, match="is a folder"):
        VideoFile(tmp_path, fps=2)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    with pytest.raises(SourceError, match="is empty"):
        VideoFile(empty, fps=2)
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    with pytest.raises(SourceError, match="is not a regular file"):
        VideoFile(pipe, fps=2)


def test_a_read_error_of_the_system_is_reported_with_its_reason():
    unreadable = Path("/proc/self/mem")  # unreadable for root too, unlike a file of mode 000
    if not unreadable.exists():
        pytest.skip("needs Linux's /proc")
    with pytest.raises(SourceError, match="cannot be read: Input/output error"):
        VideoFile(unreadable, fps=2)


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_not_positive_is_an_error(fps):
    with pytest.raises(ConfigError, match="fps="):
        VideoFile(CLIP, fps=fps)


# ---- the clock of a file ----


def times_of(positions_ms, header_fps=10.0):
    clock = FrameClock(header_fps)
    return [clock.advance(position_ms) for position_ms in positions_ms]


def test_a_missing_timestamp_is_one_frame_after_the_previous_one():
    assert times_of([0, 0, 0, 0]) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert times_of([0, 100, 0, 500]) == pytest.approx([0.0, 0.1, 0.2, 0.5])


def test_a_first_frame_with_a_decoding_time_starts_at_zero():
    positions_ms = [67, 101, 67, 134]  # from OpenCV 4.8.1
    assert times_of(positions_ms) == pytest.approx([0.0, 0.101, 0.101, 0.134])


def test_time_waits_while_damaged_timestamps_jump_back():
    assert times_of([0, 28400, 22700, 28500]) == pytest.approx([0.0, 28.4, 28.4, 28.5])


def test_joined_recordings_continue_where_the_first_one_ended():
    times_s = times_of([*range(0, 5000, 100), *range(0, 5000, 100)])
    assert all(a <= b for a, b in itertools.pairwise(times_s))
    assert 8.0 < times_s[-1] < 10.0  # it takes one second of the second one to detect it


def test_neither_timestamps_nor_a_frame_rate_is_an_error():
    with pytest.raises(SourceError, match="neither timestamps nor a frame rate"):
        times_of([0, 0], header_fps=90_000.0)


# ---- live ----


class MjpegServer(http.server.ThreadingHTTPServer):
    """A network camera: numbered pictures in one endless multipart response."""

    daemon_threads = True

    def __init__(self, fps=40.0, burst=0):
        super().__init__(("127.0.0.1", 0), MjpegHandler)
        self.url = f"http://127.0.0.1:{self.server_port}/camera.mjpg"
        self.fps = fps
        self.burst = burst  # pictures sent at once, before the rate holds
        self.num_sent = 0
        self.is_silent = threading.Event()
        self.is_over = threading.Event()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return super().__enter__()

    def __exit__(self, *exc_info):
        self.is_over.set()
        self.shutdown()
        super().__exit__(*exc_info)


class MjpegHandler(http.server.BaseHTTPRequestHandler):
    """Serves the server's pictures at every address."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        camera = self.server
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=picture")
        self.end_headers()
        try:
            while not camera.is_over.is_set():
                if not camera.is_silent.is_set():
                    self.send_picture(camera.num_sent)
                    camera.num_sent += 1
                if camera.num_sent >= camera.burst:
                    camera.is_over.wait(1 / camera.fps)
        except ConnectionError:
            pass  # the client has disconnected

    def send_picture(self, number):
        jpeg = cv2.imencode(".jpg", picture_of(number))[1].tobytes()
        head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
        self.wfile.write(head.encode() + jpeg + b"\r\n")


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


def test_a_camera_slower_than_the_rate_never_repeats_a_frame():
    with MjpegServer(fps=20) as camera, LiveCapture(camera.url, fps=200, max_frames=8) as live:
        numbers = [number_in(frame.image) for frame in live]
    assert all(a < b for a, b in itertools.pairwise(numbers))


def test_frames_buffered_before_the_first_one_are_discarded():
    with MjpegServer(burst=60) as camera, LiveCapture(camera.url, fps=10) as live:
        assert number_in(next(live).image) >= 30  # a plain read() returns picture 0


def test_a_stream_that_its_server_closes_ends_with_a_warning():
    with MjpegServer() as camera, LiveCapture(camera.url, fps=20) as live:
        next(live)
        camera.is_over.set()
        list(live)
        (warning,) = live.warnings
    assert re.search(rf"ended after \d\.\d s; {live.num_frames} frames used", warning)


def test_a_silent_stream_is_an_error_within_the_timeout():
    with (
        MjpegServer() as camera,
        LiveCapture(camera.url, fps=20, policy=replace(STREAM, stall_s=0.4)) as live,
    ):
        next(live)
        camera.is_silent.set()
        started_s = time.monotonic()
        with pytest.raises(
            SourceError, match=r"delivered no frame for 0\.\d s \(allowed: 0\.4 s\)"
        ):
            list(live)
        assert time.monotonic() - started_s < 2.0


def test_a_policy_lets_frames_wait_for_a_slow_caller():
    policy = replace(STREAM, max_waiting=4)
    with MjpegServer() as camera, LiveCapture(camera.url, fps=200, policy=policy) as live:
        next(live)
        time.sleep(0.4)  # 16 more come in, 4 of them may wait
        waiting = [number_in(next(live).image) for _ in range(4)]
    assert waiting == list(range(waiting[0], waiting[0] + 4))


@pytest.mark.parametrize(("allowed", "num_frames"), [(3, 6), (2, 2)])
def test_a_policy_says_how_many_failed_reads_end_a_source(monkeypatch, allowed, num_frames):
    class Flaky(CaptureWrapper):
        """Fails twice in a row after two pictures, and for good after six."""

        num_read = 0

        def read(self):
            self.num_read += 1
            if self.num_read in (3, 4) or self.num_read > 8:
                return False, None
            time.sleep(0.02)
            return True, picture_of(self.num_read)

    monkeypatch.setattr(cv2, "VideoCapture", Flaky)
    policy = replace(STREAM, max_waiting=9, max_failed_reads=allowed)
    with MjpegServer() as camera, LiveCapture(camera.url, fps=500, policy=policy) as live:
        assert len(list(live)) == num_frames


def test_a_failure_in_the_reading_thread_reaches_the_caller(monkeypatch):
    class Broken(CaptureWrapper):
        def read(self):
            raise cv2.error("unplugged")

    monkeypatch.setattr(cv2, "VideoCapture", Broken)
    with (
        MjpegServer() as camera,
        LiveCapture(camera.url, fps=10) as live,
        pytest.raises(SourceError, match="unplugged") as caught,
    ):
        next(live)
    assert isinstance(caught.value.__cause__, cv2.error)


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
        replace(CAMERA, stall_s=0)


@pytest.mark.parametrize("policy", [FILE, replace(CAMERA, stall_s=math.inf)], ids=["file", "inf"])
def test_a_policy_under_which_a_live_source_never_delivers_or_stalls_is_an_error(policy):
    with pytest.raises(ConfigError, match="for a live source, wanted at least 1 waiting frame"):
        LiveCapture("http://127.0.0.1:1/a", fps=2, policy=policy)
