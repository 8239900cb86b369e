"""A stream that encodes no frame twice: a clip is watched several times, and vision is costly."""

import hashlib

import numpy as np

from mod_edge.runtime.loaded_model import (
    Float32Array,
    FrameEmbeds,
    StreamState,
    UInt8Array,
    WrappedStream,
)

MAX_FRAMES = 2000  # of the largest models' embeddings, 0.3 GB


class KnownFrames:
    """The newest frames that streams of one model encoded, by their pixels.

    Attributes:
        embeds: (N, D) of each.
        stay_on_device: whether the model keeps embeddings where they cannot be kept here.
    """

    def __init__(self) -> None:
        self.embeds: dict[bytes, Float32Array] = {}
        self.stay_on_device = False


class FrameMemory(WrappedStream):
    """Remembers the frames that streams of one model encoded.

    Each new frame is encoded alone: numbers round by the size of a batch, and which frames are new
    depends on what was watched before. So a frame has one embedding, whatever was.

    A stream that keeps embeddings on a device encodes again: they are gone with its next call.
    """

    def __init__(self, inner: StreamState, known: KnownFrames) -> None:
        """Wrap `inner`; `known` is shared by the streams of one model, and filled here."""
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
