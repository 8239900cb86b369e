"""What the words of `--source` mean."""

from pathlib import Path

import pytest

from mod_edge.errors import SourceError
from mod_edge.runtime.capture.redaction import without_credentials
from mod_edge.runtime.capture.source_name import (
    CameraDevice,
    CsiCamera,
    ImagePaths,
    Pipeline,
    StreamAddress,
    TestPattern,
    VideoPath,
    parse_source,
    stream_names,
)

PIPELINE = "rtspsrc location=rtsp://me:secret@camera/1 ! rtph264depay ! appsink drop=true"


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        # a camera
        ("0", CameraDevice(0)),
        ("255", CameraDevice(255)),
        ("/dev/video251", CameraDevice(251)),  # also one that is not plugged in
        ("/dev/v4l/by-id/usb-none", CameraDevice(Path("/dev/v4l/by-id/usb-none"))),
        ("/dev/zero", CameraDevice(Path("/dev/zero"))),  # a character device, whatever its name
        ("csi://1", CsiCamera(1)),
        ("./0", VideoPath(Path("0"))),
        ("-1", VideoPath(Path("-1"))),
        ("0.mp4", VideoPath(Path("0.mp4"))),
        # a pipeline
        (PIPELINE, Pipeline(PIPELINE)),
        ("wow!.mp4", VideoPath(Path("wow!.mp4"))),
        # an address
        ("rtsp://me:Secret@Camera/1", StreamAddress("rtsp://me:Secret@Camera/1")),
        ("RTSPU://camera/1", StreamAddress("rtsp://camera/1", is_udp=True)),
        ("HTTP://Camera/A.mjpg", StreamAddress("http://Camera/A.mjpg")),
        (" http://camera/a b.mjpg\r\n", StreamAddress("http://camera/a b.mjpg")),
        ("udp://0.0.0.0:5000?fifo_size=1", StreamAddress("udp://0.0.0.0:5000?fifo_size=1")),
        ("Test://", TestPattern()),
        # a file on this machine, by address
        ("file:///videos/a.mp4", VideoPath(Path("/videos/a.mp4"))),
        ("FILE://localhost/videos/a%20b%25.mp4", VideoPath(Path("/videos/a b%.mp4"))),
        ("file:///caf%E9.mp4", VideoPath(Path("/caf\udce9.mp4"))),
        ("file:///50%.mp4", VideoPath(Path("/50%.mp4"))),
        # a file
        ("clip.mp4", VideoPath(Path("clip.mp4"))),
        (" clip.mp4", VideoPath(Path(" clip.mp4"))),
        ("-clip.mp4", VideoPath(Path("-clip.mp4"))),
        ("2024-05-01T12:30:00.mp4", VideoPath(Path("2024-05-01T12:30:00.mp4"))),
        ("cam:1.mp4", VideoPath(Path("cam:1.mp4"))),
        ("./rtsp://a.mp4", VideoPath(Path("rtsp:/a.mp4"))),
        ("1://a.mp4", VideoPath(Path("1:/a.mp4"))),  # a scheme starts with a letter
        # images
        ("photo.JPG", ImagePaths(Path("photo.JPG"))),
        ("frames/*.png", ImagePaths(Path("frames/*.png"))),
        ("file:///frames/%5B0-9%5D*", ImagePaths(Path("/frames/[0-9]*"))),
    ],
)
def test_a_text_names_a_camera_a_pipeline_an_address_or_files(text, meaning):
    assert parse_source(text) == meaning


def test_a_folder_is_images_and_a_file_with_the_name_of_a_glob_is_a_video(tmp_path):
    (tmp_path / "take[1].mp4").touch()
    assert parse_source(str(tmp_path)) == ImagePaths(tmp_path)
    assert parse_source(f"{tmp_path}/take[1].mp4") == VideoPath(tmp_path / "take[1].mp4")
    assert parse_source(f"{tmp_path}/take[2].mp4") == ImagePaths(tmp_path / "take[2].mp4")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the source has no name"),
        (" \t", "the source has no name"),
        ("256", r"camera 256 is outside 0\.\.255.*a file of that name is \./256"),
        ("9" * 5000, r"is outside 0\.\.255"),
        ("file://clip.mp4", r"file://clip\.mp4 does not name a file on this machine; wanted three"),
        ("file://nas/videos/a.mp4", "does not name a file on this machine"),
        ("file:///a%00.mp4", "does not name a file on this machine"),
        ("/dev/video256", r"camera 256 is outside 0\.\.255"),
        ("csi://front", r"csi://front is not a CSI camera; wanted its number, as in csi://0"),
        ("test://30", r"test://30: wanted test:// alone; .* \[camera\] section"),
    ],
)
def test_a_text_that_names_nothing_is_an_error_that_says_what_to_write(text, says):
    with pytest.raises(SourceError, match=says):
        parse_source(text)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("rtsp://me:secret@camera:554/1", "rtsp://***@camera:554/1"),
        ("rtsp://me:se/cr@et@camera/1", "rtsp://***@camera/1"),  # / and @ belong written as %XX
        ("rtsp://me:secret@camera/1@2", "rtsp://***@camera/1@2"),
        ("http://me:a@proxy/rtsp://me:b@cam/1", "http://***@proxy/rtsp://***@cam/1"),
        ("rtsp://camera/1@2", "rtsp://camera/1@2"),
        ("rtsp://camera:554/1@2", "rtsp://camera:554/1@2"),
        ("rtsp://[::1]:554/1@2", "rtsp://[::1]:554/1@2"),
        ("http://cam/a.mjpg?fps=9&token=s3cr3t/x#1", "http://cam/a.mjpg?fps=9&token=***#1"),
        ("http://cam/a?user=me&Password=secret", "http://cam/a?user=***&Password=***"),
        (
            "rtsp://cam/user=me&password=secret&channel=1",
            "rtsp://cam/user=***&password=***&channel=1",
        ),
        ("http://cam/a?X-Amz-Signature=secret&b=1", "http://cam/a?X-Amz-Signature=***&b=1"),
        ("http://cam/monkey=1?keyframe=2", "http://cam/monkey=1?keyframe=2"),
    ],
)
def test_no_part_of_a_password_is_in_the_name_of_an_address(address, name):
    assert StreamAddress(address).name == name


def test_streams_have_different_names_also_if_a_source_is_named_like_a_numbered_one():
    videos = [VideoPath(Path(name)) for name in ("a", "a", "a (1)", "b")]
    assert stream_names(videos) == ["a (2)", "a (3)", "a (1)", "b"]
    assert stream_names(videos[:2]) == ["a (1)", "a (2)"]


def test_no_credentials_are_left_in_a_text_around_them():
    said = 'no "rtspsrc location=rtsp://me:a@cam/1 user-id=me user-pw="b c" ! fakesink" at http://d:e@f/g'
    assert without_credentials(said) == (
        'no "rtspsrc location=rtsp://***@cam/1 user-id=*** user-pw=*** ! fakesink" at http://***@f/g'
    )
