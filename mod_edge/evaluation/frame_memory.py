"""A stream that encodes each frame once: a clip is run several times, and vision is expensive."""

import hashlib

import numpy as np

from mod_edge.runtime.loaded_model import (
    Float32Array,
    FrameEmbeds,
    StreamState,
    UInt8Array,
    WrappedStream,
)

MAX_FRAMES = 2000  # 0.3 GB of embeddings for the largest models


class KnownFrames:
    """The frames encoded by the streams of one model, by a hash of their pixels.

    Attributes:
        embeds: (N, D) per frame.
        stay_on_device: whether the model leaves embeddings on the device, so they are not kept.
    """

    def __init__(self) -> None:
        self.embeds: dict[bytes, Float32Array] = {}
        self.stay_on_device = False


class FrameMemory(WrappedStream):
    """Caches the embeddings of frames for all streams of one model.

    Each new frame is encoded alone: results round differently by batch size, and which frames are
    new depends on earlier streams. So a frame always has the same embedding.

    Embeddings on a device are valid only until its next call: such frames are encoded every time.
    """

    def __init__(self, inner: StreamState, known: KnownFrames) -> None:
        """Wrap `inner`; `known` is the cache that the streams of one model share."""
        super().__init__(inner)
        self._known = known

    def encode(self, frames: UInt8Array) -> FrameEmbeds:
        """See `StreamState`."""
        known = self._known
        if known.stay_on_device:
            return self.inner.encode(frames)
        keys = [hashlib.blake2b(frame.tobytes(), digest_size=16).digest() for frame in frames]
        if len(known.embeds) > MAX_FRAMES:
            known.embeds.clear()
        for number, key in enumerate(keys):
            if key in known.embeds:
                continue
            embeds = self.inner.encode(frames[number : number + 1])
            if not isinstance(embeds, np.ndarray):
                known.stay_on_device = True
                return self.inner.encode(frames)
            known.embeds[key] = embeds[0].copy()
        return np.stack([known.embeds[key] for key in keys])
