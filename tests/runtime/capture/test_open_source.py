"""Recordings by their address, from a local web server: all frames, on the file's own clock."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mod_edge.commands.decoder_settings import FFMPEG_OPTIONS
from mod_edge.errors import SourceError
from mod_edge.runtime.capture.live_capture import LiveCapture
from mod_edge.runtime.capture.open_live import open_stream
from mod_edge.runtime.capture.open_source import open_source
from mod_edge.runtime.capture.source import RECORDING
from mod_edge.runtime.capture.source_name import StreamAddress
from mod_edge.runtime.capture.video_file import VideoFile
from tests.runtime.capture.folder_server import FolderServer
from tests.runtime.capture.mjpeg_camera import MjpegServer
from tests.runtime.capture.numbered_video import seen_in, write_video

CLIP = Path(__file__).resolve().parents[2] / "data" / "box.mp4"  # 31 frames at 2/s
EVERY_FIFTH = [(5 * k, k / 2) for k in range(12)]  # number and time of 60 pictures at 10/s, at 2/s


def watch(source):
    with open_source(source, fps=2) as frames:
        assert not frames.is_live
        seen = seen_in(frames)
        assert (frames.num_dropped, frames.warnings) == (0, [])
    return seen


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "mp4v"), ("a.mkv", "MJPG"), ("a.avi", "MJPG")]
)
def test_a_recording_by_address_gives_the_frames_of_the_file(tmp_path, name, codec):
    path = write_video(tmp_path / name, fps=10, num_frames=60, codec=codec)
    with FolderServer(tmp_path) as server:
        assert watch(f"http://{server.address}/{name}") == watch(path) == EVERY_FIFTH


@pytest.mark.parametrize("playlist", ["video.m3u8", "video.ts"])
def test_a_complete_hls_video_and_its_segments_are_recordings(tmp_path, ffmpeg, playlist):
    path = write_video(tmp_path / "a.avi", fps=10, num_frames=60)
    hls = ("-hls_time", "1", "-hls_list_size", "0", "-hls_flags", "single_file")
    ffmpeg("-i", path, "-c:v", "mpeg2video", "-q:v", "1", "-g", "10", *hls, tmp_path / "video.m3u8")
    with FolderServer(tmp_path) as server:
        assert watch(f"http://{server.address}/{playlist}") == EVERY_FIFTH


@pytest.mark.live
def test_a_live_hls_stream_comes_at_its_own_pace_although_its_segments_come_at_once(
    tmp_path, ffmpeg
):
    path = write_video(tmp_path / "a.avi", fps=10, num_frames=120)
    hls = ("-hls_time", "3", "-hls_list_size", "0", "-hls_flags", "omit_endlist")
    ffmpeg("-i", path, "-c:v", "mpeg2video", "-q:v", "1", "-g", "10", *hls, tmp_path / "live.m3u8")
    with (
        FolderServer(tmp_path) as server,
        open_source(f"http://{server.address}/live.m3u8?token=secret", fps=5, max_frames=2) as live,
    ):
        assert isinstance(live, LiveCapture)
        first, second = seen_in(live)
    # FFmpeg begins three segments before the end; without a pace the first would be picture 119
    assert 30 <= first[0] < second[0] < 110


def test_a_file_by_address_gives_the_frames_of_the_file(tmp_path):
    write_video(tmp_path / "a b.avi", fps=10, num_frames=60)
    assert watch(f"file://{tmp_path}/a%20b.avi") == EVERY_FIFTH


def test_the_command_line_reads_from_servers_that_close_without_saying_so(
    tmp_path, monkeypatch, ffmpeg
):
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", FFMPEG_OPTIONS)
    path = tmp_path / "a.mp4"  # its index is at the end: FFmpeg asks for several parts of it
    ffmpeg(
        "-f", "lavfi", "-i", "testsrc2=s=640x480:r=10:d=5", "-c:v", "libx264", "-crf", "10", path
    )
    with (
        FolderServer(tmp_path, protocol="HTTP/1.1") as server,
        open_source(f"http://{server.address}/a.mp4", fps=10) as video,
    ):
        assert len(list(video)) == 50


@pytest.mark.live
def test_an_address_without_an_end_is_live():
    with MjpegServer() as camera, open_source(camera.url, fps=20, max_frames=2) as frames:
        assert isinstance(frames, LiveCapture)
        assert len(list(frames)) == 2


def test_a_recording_whose_connection_is_lost_is_an_error_without_the_password(tmp_path):
    path = write_video(tmp_path / "a.mkv", fps=10, num_frames=300)
    with FolderServer(tmp_path, limit=path.stat().st_size // 2) as server:
        source = open_source(f"http://me:secret@{server.address}/a.mkv", fps=2)
        with source, pytest.raises(SourceError, match=r"connection was lost.*download") as caught:
            list(source)
    assert 20 < source.num_frames < 40
    assert str(caught.value).startswith(f"http://***@{server.address}/a.mkv ended early: read ")


@pytest.mark.live
def test_a_recording_whose_server_stalls_is_an_error_within_the_timeout(tmp_path):
    path = write_video(tmp_path / "a.mkv", fps=10, num_frames=300)
    policy = replace(RECORDING, stall_s=1.0)
    with FolderServer(tmp_path, limit=path.stat().st_size // 2, holds=True) as server:
        url = f"http://{server.address}/a.mkv"
        opened = open_stream(StreamAddress(url), policy.stall_s)
        with (
            VideoFile(url, fps=2, policy=policy, opened=opened) as video,
            pytest.raises(SourceError, match=r"a\.mkv delivered no frame for 1\.\d s"),
        ):
            list(video)
    assert 20 < video.num_frames < 40


@pytest.mark.parametrize(
    "name",
    ["2024-05-01T12:30:00.mp4", "cam:1.mp4", "http:x.mp4", "-clip.mp4", "clip%03d.mp4", " a.mp4"],
)
def test_a_file_may_have_any_name(tmp_path, monkeypatch, name):
    shutil.copy(CLIP, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with open_source(name, fps=2) as video:
        assert len(list(video)) == 31
        assert video.warnings == []
