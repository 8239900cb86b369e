"""Whether a video file states its rate, from its first bytes.

FFmpeg assumes 25 frames/s for files without timestamps and a rate, and OpenCV does not tell.
"""

import struct

HEADER_BYTES = 4096
START_CODE = b"\x00\x00\x01"


def states_rate(head: bytes) -> bool:
    """Whether frames have timestamps or the file a frame rate.

    Args:
        head: the first `HEADER_BYTES` of the file, or all of a shorter one.
    """
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return _avi_states_rate(head)
    if head.startswith(b"\xff\xd8"):  # JPEG pictures one after the other
        return False
    is_box = head[4:8].isalpha()  # mp4 begins with a box's length and name
    start = head.find(START_CODE, 0, len(START_CODE) + 1)
    if start < 0 or is_box or len(head) <= start + len(START_CODE):
        return True
    # Bare streams: those of MPEG-1, 2 and 4 state times or a rate and go on with a high bit, or 0
    # for an object of MPEG-4; H.264 and H.265 need neither and never have that bit.
    kind = head[start + len(START_CODE)]
    return kind == 0 or kind >= 0x80


def _avi_states_rate(head: bytes) -> bool:
    """Whether the main header has a time per frame, or the video's header a rate."""
    main, video = head.find(b"avih"), head.find(b"vids")
    if not 0 <= main < video <= len(head) - 28:  # damaged, or not in this part of the file
        return True
    (frame_us,) = struct.unpack_from("<I", head, main + 8)
    scale, rate = struct.unpack_from("<II", head, video + 20)
    return bool(frame_us or (scale and rate))
