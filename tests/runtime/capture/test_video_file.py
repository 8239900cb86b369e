"""Video files as cameras, phones and recorders write them, made with FFmpeg."""

import os
import re
import struct

import cv2
import pytest

from mod_edge.errors import SourceError
from mod_edge.runtime.capture.open_live import open_stream
from mod_edge.runtime.capture.source_name import StreamAddress
from mod_edge.runtime.capture.video_file import VideoFile

FPS = 2


@pytest.fixture
def record(ffmpeg, tmp_path):
    """`record(name, *options, fps=10, seconds=3)`: the path of a new video of 64 x 48 pixels."""

    def make(name, *options, fps=10, seconds=3):
        source = ("-f", "lavfi", "-i", f"testsrc=s=64x48:r={fps}:d={seconds}")
        ffmpeg(*source, "-c:v", "mpeg4", *options, tmp_path / name)
        return tmp_path / name

    return make


def with_track(ffmpeg, video, extra, name, *options):
    """A file beside `video` that holds the streams of `extra` before those of `video`."""
    path = video.with_name(name)
    ffmpeg("-i", video, "-i", extra, "-map", "1", "-map", "0", "-c", "copy", *options, path)
    return path


def sound(ffmpeg, folder, seconds):
    ffmpeg("-f", "lavfi", "-i", f"sine=d={seconds}", "-c:a", "flac", folder / "sound.mkv")
    return folder / "sound.mkv"


def turned(path, name):
    """A copy of an mp4 file whose pictures players turn by 90 degrees, as phones write them."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44  # of the matrix, in a box of version 0
    content[start : start + 36] = struct.pack(
        ">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30
    )
    path.with_name(name).write_bytes(content)
    return path.with_name(name)


def watch(path, fps=FPS):
    """The times of the frames in seconds, their pictures and the file's warnings."""
    with VideoFile(path, fps=fps) as video:
        frames = list(video)
        return [frame.time_s for frame in frames], [frame.image for frame in frames], video.warnings


def test_a_timestamp_that_jumps_an_hour_ahead_is_one_gap_with_a_warning(record):
    later = "setpts='PTS+if(gte(N,15),3600/TB,0)'"
    path = record("jump.mkv", "-vf", later, "-fps_mode", "vfr")
    times_s, _, (warning,) = watch(path)
    assert times_s == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert "jump.mkv has 1 gap of more than 600 s" in warning
    assert "3,600.0 s were skipped" in warning


def test_a_gap_is_warned_of_before_the_end_of_the_file(record):
    later = "setpts='PTS+if(gte(N,15),3600/TB,0)'"
    with VideoFile(record("jump.mkv", "-vf", later, "-fps_mode", "vfr"), fps=FPS) as video:
        for _ in range(5):
            next(video)
        (warning,) = video.warnings
    assert "jump.mkv has 1 gap" in warning


@pytest.mark.parametrize(
    "starts_s", [(0, 7200), (7200, 0)]
)  # FFmpeg turns a jump back into one ahead
def test_transport_streams_joined_hours_apart_have_a_gap(record, tmp_path, starts_s):
    parts = [
        record(f"{start_s}.ts", "-output_ts_offset", str(start_s), "-c:v", "mpeg2video", fps=25)
        for start_s in starts_s
    ]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    times_s, _, (warning,) = watch(path)
    assert times_s == [k / FPS for k in range(12)]
    assert "has 1 gap" in warning


def test_slides_that_last_minutes_keep_their_times(ffmpeg, tmp_path, record):
    slide = record("slide.png", "-c:v", "png", "-frames:v", "1")
    playlist = tmp_path / "slides.txt"
    playlist.write_text("".join(f"file {slide}\nduration {s}\n" for s in (90, 500, 1)))
    path = tmp_path / "slides.mkv"
    ffmpeg("-f", "concat", "-safe", "0", "-i", playlist, "-fps_mode", "vfr", "-c:v", "ffv1", path)
    times_s, _, warnings = watch(path)
    assert times_s[-1] >= 590.0
    assert warnings == []


@pytest.mark.parametrize(
    ("name", "fps", "seconds", "last_s"),
    [
        ("slow.mp4", 0.1, 60, 50.0),
        ("slow.mkv", 0.1, 60, 50.0),
        ("fast.mp4", 1000, 1.2, 1.0),
        ("fast.mkv", 2000, 1.2, 1.0),
    ],
)
def test_videos_of_a_tenth_to_two_thousand_frames_per_second_keep_their_times(
    record, name, fps, seconds, last_s
):
    times_s, _, warnings = watch(record(name, fps=fps, seconds=seconds))
    assert times_s == [k / FPS for k in range(round(last_s * FPS) + 1)]
    assert warnings == []


@pytest.mark.parametrize("name", ["drone.mp4", "phone.mov", "drone.mkv"])
def test_a_thumbnail_before_the_video_is_told_with_the_command_that_takes_the_video(
    ffmpeg, record, name
):
    thumbnail = record("thumbnail.mkv", "-c:v", "mjpeg", "-frames:v", "1")
    path = with_track(ffmpeg, record("video.mp4"), thumbnail, name)
    times_s, _, (warning,) = watch(path)
    assert times_s == [0.0]
    assert f"{name} gave one picture but lasts 3 s" in warning
    (options,) = re.findall(r"ffmpeg -i VIDEO (.*) fixed\.mp4", warning)
    fixed = path.with_name("fixed.mp4")
    ffmpeg("-i", path, *options.split(), fixed)
    times_s, _, warnings = watch(fixed)
    assert len(times_s) == 6
    assert warnings == []


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.mp4", "a.mkv"])
def test_a_file_of_one_picture_gives_it_without_a_warning(record, name):
    codec = {"a.jpg": "mjpeg", "a.png": "png"}.get(name, "mpeg4")
    times_s, _, warnings = watch(record(name, "-c:v", codec, "-frames:v", "1"))
    assert times_s == [0.0]
    assert warnings == []


@pytest.mark.parametrize("name", ["late.mkv", "late.mp4", "late.ts", "late.webm"])
def test_a_video_that_starts_at_two_hours_is_whole(record, name):
    if name in ("late.mkv", "late.webm") and not hasattr(cv2, "CAP_PROP_PTS"):
        pytest.skip("needs the start of a video, which OpenCV gives from 4.11")
    codec = "libvpx" if name == "late.webm" else "mpeg4"
    times_s, _, warnings = watch(record(name, "-c:v", codec, "-output_ts_offset", "7200"))
    assert times_s == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert warnings == []


def test_a_late_recording_that_is_cut_off_is_still_told(record):
    path = record("cut.mp4", "-output_ts_offset", "7200", "-movflags", "+faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    _, _, warnings = watch(path)
    assert any("ended early" in warning for warning in warnings)


def test_sound_longer_than_the_pictures_is_not_called_a_truncated_file(ffmpeg, record, tmp_path):
    video, long_sound = record("video.mp4"), sound(ffmpeg, tmp_path, 10)
    times_s, _, warnings = watch(with_track(ffmpeg, video, long_sound, "a.mp4", "-strict", "-2"))
    assert len(times_s) == 6
    assert warnings == []
    # Matroska has no frame count: only the length of the whole file is known
    times_s, _, (warning,) = watch(with_track(ffmpeg, video, long_sound, "a.mkv"))
    assert len(times_s) == 6
    assert "3.0 s of 10.0 s; the file may be truncated, or its sound longer" in warning


def test_a_name_that_is_not_utf_8_is_read_like_any_other(record, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    record("plain.mp4").rename(path)
    times_s, _, warnings = watch(path)
    assert len(times_s) == 6
    assert warnings == []


def test_a_name_that_no_file_can_have_is_an_error():
    with pytest.raises(SourceError, match="there is no video file"):
        VideoFile("caf\ud800.mp4", fps=FPS)


def test_a_path_through_a_file_is_an_error_about_the_path(tmp_path):
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(SourceError, match=r"there is no video file .*clip\.mp4/a; check the path"):
        VideoFile(tmp_path / "clip.mp4" / "a", fps=FPS)
    with pytest.raises(SourceError, match="too long; check the path and its permissions"):
        VideoFile("a" * 300, fps=FPS)


def test_an_address_that_is_not_utf_8_is_an_error_without_the_password():
    with pytest.raises(SourceError, match=r"rtsp://\*\*\*@host/.* has bytes that are not UTF-8"):
        open_stream(StreamAddress(os.fsdecode(b"rtsp://me:secret@host/\xe9")), 1.0)


def test_a_video_with_a_rotation_flag_gives_upright_pictures(record):
    _, (first, *_), _ = watch(turned(record("flat.mp4"), "phone.mp4"))
    assert first.shape == (64, 48, 3)


@pytest.mark.parametrize(
    ("name", "aspect", "shape"),
    [
        ("wide.mp4", "2/1", (48, 128, 3)),
        ("wide.mkv", "2/1", (48, 128, 3)),
        ("tall.mp4", "1/2", (96, 64, 3)),
        ("square.mp4", "1/1", (48, 64, 3)),
        ("damaged.mp4", "1/90", (48, 64, 3)),
    ],
)
def test_pixels_that_are_not_square_are_stretched_to_what_people_see(record, name, aspect, shape):
    _, (first, *_), _ = watch(record(name, "-vf", f"setsar={aspect}", "-strict", "-1"))
    assert first.shape == shape


def test_pixels_that_are_not_square_are_stretched_before_the_picture_is_turned(record):
    _, (first, *_), _ = watch(turned(record("wide.mp4", "-vf", "setsar=2/1"), "phone.mp4"))
    assert first.shape == (128, 48, 3)


def without_rate(path):
    """The AVI file after its main header and its video's header have lost their rates."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"avih") + 8, 0)
    struct.pack_into("<II", content, content.index(b"vids") + 20, 0, 0)
    path.write_bytes(content)
    return path


RAW = {"raw.h264": "libx264", "raw.hevc": "libx265", "raw.mjpeg": "mjpeg", "rateless.avi": "mjpeg"}


@pytest.mark.parametrize("name", RAW)
def test_a_rate_that_is_assumed_is_told_with_the_command_that_sets_it(ffmpeg, record, name):
    quiet = ("-x265-params", "log-level=none") if name == "raw.hevc" else ()
    path = record(name, "-c:v", RAW[name], "-pix_fmt", "yuvj420p", *quiet)
    if name == "rateless.avi":
        without_rate(path)
    _, _, (warning,) = watch(path)
    assert re.search(r"neither timestamps nor a frame rate: \d+ frames/s were assumed", warning)
    (before, after) = re.findall(r"ffmpeg (.*) -i VIDEO (.*) fixed\.mp4", warning)[0]
    fixed = path.with_name("fixed.mp4")
    ffmpeg(*before.replace("FPS", "10").split(), "-i", path, *after.split(), fixed)
    times_s, _, warnings = watch(fixed)
    assert times_s == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert warnings == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.avi", ()),
        ("a.m4v", ("-f", "m4v")),
        ("a.mpg", ("-c:v", "mpeg2video")),
        ("piped.asf", ("-f", "asf", "-c:v", "wmv2")),
        ("piped.webm", ("-f", "webm", "-c:v", "libvpx")),
        ("piped.mkv", ("-f", "matroska")),
        ("fragmented.mp4", ("-movflags", "frag_keyframe+empty_moov")),
        ("a.gif", ("-c:v", "gif")),
    ],
)
def test_files_with_timestamps_or_a_rate_are_read_by_them(record, name, options):
    output = options
    if name.startswith("piped"):  # the writer cannot go back to fill in the length
        output = (*options, "-seekable", "0")
    times_s, _, warnings = watch(record(name, *output, fps=25))
    assert times_s == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert warnings == []


def test_a_video_that_cannot_be_decoded_is_an_error_with_its_codec_and_what_to_do(record):
    path = record("a.mp4")
    content = bytearray(path.read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    content[start:end] = bytes(end - start)
    path.write_bytes(content)
    says = r"none of its frames can be decoded \(codec \w{4}\).*ffmpeg -i VIDEO -c:v libx264"
    with pytest.raises(SourceError, match=says):
        watch(path)
