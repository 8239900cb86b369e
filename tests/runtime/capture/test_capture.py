"""Capture from real files; every picture shows its own number."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mod_edge.errors import ConfigError, SourceError
from mod_edge.runtime.capture.frame_clock import FrameClock
from mod_edge.runtime.capture.video_file import VideoFile
from tests.runtime.capture.numbered_video import number_in, seen_in, write_video

CLIP = Path(__file__).resolve().parents[2] / "data" / "box.mp4"  # 457 frames, 29.97/s
NTSC_FPS = 30000 / 1001
VIDEO_CAPTURE = cv2.VideoCapture
TIMEOUT_S = 60


def numbers_and_times(path, **options):
    with VideoFile(path, **options) as video:
        return seen_in(video)


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
