"""What the words of `--source` mean."""

from pathlib import Path

import pytest

from mod_edge.errors import SourceError
from mod_edge.runtime.capture.source_name import name_of, parse_source

PIPELINE = "rtspsrc location=rtsp://me:secret@camera/1 ! rtph264depay ! appsink drop=true"


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        # a camera
        ("0", 0),
        ("255", 255),
        ("./0", Path("0")),
        ("-1", Path("-1")),
        ("0.mp4", Path("0.mp4")),
        # a pipeline
        (PIPELINE, PIPELINE),
        ("wow!.mp4", Path("wow!.mp4")),
        # an address
        ("rtsp://me:Secret@Camera/1", "rtsp://me:Secret@Camera/1"),
        ("HTTP://Camera/A.mjpg", "http://Camera/A.mjpg"),
        (" http://camera/a b.mjpg\r\n", "http://camera/a b.mjpg"),
        ("udp://0.0.0.0:5000?fifo_size=1", "udp://0.0.0.0:5000?fifo_size=1"),
        # a file on this machine, by address
        ("file:///videos/a.mp4", Path("/videos/a.mp4")),
        ("FILE://localhost/videos/a%20b%25.mp4", Path("/videos/a b%.mp4")),
        ("file:///caf%E9.mp4", Path("/caf\udce9.mp4")),
        ("file:///50%.mp4", Path("/50%.mp4")),
        # a file
        ("clip.mp4", Path("clip.mp4")),
        (" clip.mp4", Path(" clip.mp4")),
        ("-clip.mp4", Path("-clip.mp4")),
        ("2024-05-01T12:30:00.mp4", Path("2024-05-01T12:30:00.mp4")),
        ("cam:1.mp4", Path("cam:1.mp4")),
        ("./rtsp://a.mp4", Path("rtsp:/a.mp4")),
        ("1://a.mp4", Path("1:/a.mp4")),  # a scheme starts with a letter
    ],
)
def test_a_text_names_a_camera_a_pipeline_an_address_or_a_file(text, meaning):
    parsed = parse_source(text)
    assert parsed == meaning
    assert type(parsed) is type(meaning)


@pytest.mark.parametrize("text", ["0", PIPELINE, " HTTP://camera/1 ", "a.mp4"])
def test_what_a_text_means_means_the_same_again(text):
    assert parse_source(str(parse_source(text))) == parse_source(text)


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
    ],
)
def test_no_part_of_a_password_is_in_the_name_of_an_address(address, name):
    assert name_of(address) == name
