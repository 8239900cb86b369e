"""Which files state a rate, from their first bytes."""

import pytest

from mod_edge.runtime.capture.file_header import states_rate


@pytest.mark.parametrize(
    "head",
    [
        b"\x00\x00\x00\x01\x67\x64\x00\x0d",  # H.264: a sequence parameter set
        b"\x00\x00\x00\x01\x40\x01\x0c\x01",  # H.265: a video parameter set
        b"\x00\x00\x01\x09\xf0\x00\x00\x01",  # H.264 with an access unit delimiter
        b"\xff\xd8\xff\xe0\x00\x10JFIF",
    ],
)
def test_bare_streams_of_h_264_h_265_and_jpeg_state_none(head):
    assert not states_rate(head)


@pytest.mark.parametrize(
    "head",
    [
        b"\x00\x00\x00\x01mdat\x00\x00",  # mp4 whose first box is longer than 4 GiB
        b"\x00\x00\x00\x18ftypmp42",
        b"\x00\x00\x01\xba\x44\x00",  # an MPEG program stream
        b"\x00\x00\x01\xb3\x14\x00",  # MPEG-2
        b"\x00\x00\x01\xb0\x01\x00",  # MPEG-4
        b"\x1a\x45\xdf\xa3",  # Matroska
        b"RIFF\x00\x00\x00\x00AVI LIST",  # cut off before its headers
        b"RIFF\x00\x00\x00\x00AVI vids" + bytes(40) + b"avih",  # damaged: headers in wrong order
        b"\x00\x00\x01",
        b"",
    ],
)
def test_containers_and_mpeg_streams_do(head):
    assert states_rate(head)
