"""Each frame is encoded once and has its own embeddings."""

import numpy as np
import pytest

from mod_edge.evaluation import frame_memory
from mod_edge.evaluation.frame_memory import FrameMemory, KnownFrames

pytestmark = pytest.mark.numeric


class Encoder:
    """Embeds a frame as its first pixel, in one buffer that the next call overwrites."""

    name = "encoder"

    def __init__(self):
        self.calls = []
        self._buffer = np.zeros((4, 1, 1), np.float32)

    def encode(self, frames):
        self.calls.append(len(frames))
        self._buffer[: len(frames), 0, 0] = frames[:, 0, 0, 0]
        return self._buffer[: len(frames)]


class DeviceEncoder(Encoder):
    """Returns embeddings that are not numpy arrays, like a device."""

    def encode(self, frames):
        return memoryview(super().encode(frames).tobytes())


def frames_of(*shades):
    return np.stack([np.full((2, 2, 3), shade, np.uint8) for shade in shades])


def shades_of(embeds):
    return np.asarray(embeds)[:, 0, 0].tolist()


def test_each_new_frame_is_encoded_alone():
    encoder = Encoder()
    memory = FrameMemory(encoder, KnownFrames())
    assert shades_of(memory.encode(frames_of(3, 4, 5))) == [3, 4, 5]
    assert shades_of(memory.encode(frames_of(5, 6, 3))) == [5, 6, 3]
    assert shades_of(memory.encode(frames_of(4, 4))) == [4, 4]
    assert encoder.calls == [1] * 4  # a batch's size would show in the last bits


def test_streams_of_one_model_share_frames():
    encoder, known = Encoder(), KnownFrames()
    first, second = (FrameMemory(encoder, known) for _ in range(2))
    assert shades_of(first.encode(frames_of(3, 4))) == [3, 4]
    assert shades_of(second.encode(frames_of(4, 5))) == [4, 5]
    assert encoder.calls == [1, 1, 1]


def test_embeddings_on_a_device_are_never_kept():
    encoder = DeviceEncoder()
    memory = FrameMemory(encoder, KnownFrames())
    for _ in range(2):
        assert isinstance(memory.encode(frames_of(3, 4)), memoryview)
    assert encoder.calls == [1, 2, 2]  # the first shows that it stays there


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(frame_memory, "MAX_FRAMES", 2)
    encoder = Encoder()
    memory = FrameMemory(encoder, KnownFrames())
    for _ in range(2):
        for shade in (1, 2, 3):
            assert shades_of(memory.encode(frames_of(shade))) == [shade]
    assert encoder.calls == [1] * 6
