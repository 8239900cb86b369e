"""A runner that encodes no frame twice: a clip is watched several times, and vision is dear."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.plan.layout import StepLayout
from mod_edge.runtime.runner import (
    Float32Array,
    FrameEmbeds,
    Int64Array,
    Runner,
    UInt8Array,
)

MAX_FRAMES = 2000  # of the largest models' embeddings, 0.3 GB


class FrameMemory(Runner):
    """Remembers the newest frames that `runner` encoded; all else is that runner's.

    Each new frame is encoded alone: numbers round by the size of a batch, and which frames are new
    depends on what was watched before. So a frame has one embedding, whatever was.

    A runner that keeps embeddings on a device encodes anew: they are gone with its next call.
    """

    def __init__(self, runner: Runner) -> None:
        self.name = runner.name
        self._runner = runner
        self._known: dict[bytes, Float32Array] = {}
        self._stays_on_device = False

    def encode(self, frames: UInt8Array) -> FrameEmbeds:
        """See `Runner`."""
        if self._stays_on_device:
            return self._runner.encode(frames)
        keys = [hashlib.blake2b(frame.tobytes(), digest_size=16).digest() for frame in frames]
        if len(self._known) > MAX_FRAMES:
            self._known.clear()
        for number, key in enumerate(keys):
            if key in self._known:
                continue
            embeds = self._runner.encode(frames[number : number + 1])
            if not isinstance(embeds, np.ndarray):
                self._stays_on_device = True
                return self._runner.encode(frames)
            self._known[key] = embeds[0].copy()
        return np.stack([self._known[key] for key in keys])

    def step(
        self,
        layout: StepLayout,
        token_ids: Sequence[int],
        frame_embeds: FrameEmbeds | None,
        *,
        position: int,
        past: Rows,
    ) -> None:
        """See `Runner`."""
        self._runner.step(layout, token_ids, frame_embeds, position=position, past=past)

    def logits(self, rows: Sequence[int]) -> Float32Array:
        """See `Runner`."""
        return self._runner.logits(rows)

    def evict(self, eviction: Eviction) -> None:
        """See `Runner`."""
        self._runner.evict(eviction)

    @property
    def kept(self) -> Mapping[int, Int64Array]:
        """See `Runner`."""
        return self._runner.kept

    @property
    def warnings(self) -> list[str]:
        """See `Runner`."""
        return self._runner.warnings

    def close(self) -> None:
        """See `Runner`."""
        self._runner.close()
