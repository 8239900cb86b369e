"""Video files as cameras, phones and recorders write them, made with FFmpeg."""

import pytest

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
