"""The PyTorch reference as a backend, to compare the others with.

The other backends keep rotated keys and move the sink. This one keeps unrotated keys with a list of
positions, lowers the positions of all tokens after the sink, and rotates all keys again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from mod_edge.model.checkpoint import checkpoint_of_bundle
from mod_edge.model.layers import LayerCache
from mod_edge.model.video_llm import VideoLLM
from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.plan.layout import StepLayout
from mod_edge.runtime.loaded_model import (
    Float32Array,
    FrameEmbeds,
    Int64Array,
    LoadedModel,
    StreamState,
    UInt8Array,
)


class TorchModel(LoadedModel):
    """The reference model in float32; needs the checkpoint, not a bundle."""

    def __init__(self, model: VideoLLM) -> None:
        threads = torch.get_num_threads()
        self.name = f"torch (reference, torch {torch.__version__}, CPU, threads {threads})"
        self._model = model

    def open_stream(self) -> "TorchStream":
        return TorchStream(self, self._model)

    @torch.inference_mode()
    def encode(self, frames: UInt8Array) -> Float32Array:
        embeds: Float32Array = self._model(torch.from_numpy(frames)).float().numpy()
        return embeds


class TorchStream(StreamState):
    """One stream's caches on the reference model; they grow with it."""

    def __init__(self, loaded: TorchModel, model: VideoLLM) -> None:
        self.name = loaded.name
        self._loaded = loaded
        self._model = model
        self._mod_layers = frozenset(model.config.mod_layers)
        self._caches = model.empty_caches()
        # By layer: rows after the sink, while new text of the sink is fed in their place.
        self._set_aside: dict[int, LayerCache] = {}
        self._num_evicted = 0
        self._hidden = torch.empty(0)
        self._kept: dict[int, torch.Tensor] = {}

    def encode(self, frames: UInt8Array) -> Float32Array:
        return self._loaded.encode(frames)

    @torch.inference_mode()
    def step(
        self,
        layout: StepLayout,
        token_ids: Sequence[int],
        frame_embeds: FrameEmbeds | None,
        *,
        position: int,
        past: Rows,
    ) -> None:
        for index, cache in enumerate(self._caches):
            cache.keep(torch.arange(self._rows(past, index)))
        # The dtype, because a list without ids would become float32.
        text = self._model.model.embed_tokens(torch.tensor(list(token_ids), dtype=torch.int64))
        hidden = text.new_empty(layout.num_tokens, text.shape[1])
        hidden[torch.tensor(layout.text_index)] = text
        if frame_embeds is not None:
            frames = torch.from_numpy(np.asarray(frame_embeds)).to(hidden.dtype)
            hidden[torch.tensor(layout.frame_index)] = frames
        positions = torch.arange(layout.num_tokens) + (position - self._num_evicted)
        output = self._model.step(hidden, layout, positions, self._caches)
        self._hidden, self._kept = output.hidden, output.kept

    @torch.inference_mode()
    def logits(self, rows: Sequence[int]) -> Float32Array:
        logits: Float32Array = self._model.logits(self._hidden[list(rows)]).numpy()
        return logits

    def evict(self, eviction: Eviction) -> None:
        self._num_evicted = eviction.num_evicted
        for index, cache in enumerate(self._caches):
            later = self._set_aside.pop(index, None) or self._later_rows(eviction, index)
            cache.keep(torch.arange(self._rows(eviction.sink, index)))
            if any(eviction.room):
                self._set_aside[index] = later
            else:
                cache.append(later.key, later.value, later.positions)

    def _later_rows(self, eviction: Eviction, layer: int) -> LayerCache:
        """The rows after the dropped ones, with the positions that they then have."""
        cache = self._caches[layer]
        first = self._rows(eviction.sink.plus(eviction.dropped), layer)
        rows = slice(first, self._rows(eviction.length, layer))
        moved = eviction.dropped.dense - eviction.room.dense
        return LayerCache(cache.key[rows], cache.value[rows], cache.positions[rows] - moved)

    @property
    def kept(self) -> Mapping[int, Int64Array]:
        return {index: np.asarray(kept) for index, kept in self._kept.items()}

    def _rows(self, rows: Rows, layer: int) -> int:
        return rows.of(layer in self._mod_layers)


def load_torch_model(path: Path, fingerprint: str) -> TorchModel:
    """The reference on the checkpoint at `path`, whose fingerprint must be `fingerprint`.

    Raises:
        CheckpointError: the checkpoint is damaged.
        BundleError: the bundle was made from another checkpoint.
    """
    return TorchModel(checkpoint_of_bundle(path, fingerprint).load_model())
