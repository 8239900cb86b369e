"""Videos whose every picture shows its own number."""

import cv2
import numpy as np

BLOCK = 16  # side of one bit in pixels: JPEG at 4:2:0 keeps it black or white
SIDE_BITS = 4


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


def seen_in(frames):
    """The numbers that the frames of a source show, with their times."""
    return [(number_in(frame.image), frame.time_s) for frame in frames]
