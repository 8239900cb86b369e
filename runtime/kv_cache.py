"""The rolling KV cache's buffers in host memory: token-major, preallocated, appended by the graphs.

A layer's keys and values are (S, G, E) each, so the rows of the past and the rows that a step adds
are contiguous views of one buffer: graphs read the one and write the other, nothing is copied. An
eviction moves the rest down with one memmove a buffer and rebases the sink.
"""

import ctypes
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mod_edge.config import ModelConfig
from mod_edge.errors import CacheError
from mod_edge.kv_window import Eviction, Rows
from mod_edge.rope import inverse_frequencies

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LayerBuffers:
    """One layer's keys, rotated at their positions, and values: (S, G, E) float32 views."""

    key: Float32Array
    value: Float32Array
    is_mod: bool


class KvCache:
    """All layers' buffers; which rows are in use is the `KvWindow`'s knowledge."""

    def __init__(self, config: ModelConfig, capacity: Rows) -> None:
        """Allocate zeroed buffers: a NaN in a masked row would poison the attention.

        Raises:
            CacheError: there is not so much memory.
        """
        text = config.text_config
        heads = (text.num_key_value_heads, text.head_dim)
        self.capacity = capacity
        self._frequencies = inverse_frequencies(text)
        self._first_sink_keys: list[Float32Array] = []
        self.layers: list[LayerBuffers] = []
        for index in range(text.num_hidden_layers):
            is_mod = index in config.mod_layers
            shape = (capacity.mod if is_mod else capacity.dense, *heads)
            try:
                key, value = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
            except (MemoryError, ValueError, OverflowError) as exc:  # ValueError: beyond 2**63
                raise CacheError(
                    f"a KV cache of {capacity.dense} tokens does not fit in this machine's memory; "
                    "take a smaller --window or --kv-budget"
                ) from exc
            self.layers.append(LayerBuffers(key, value, is_mod))

    @property
    def size_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(layer.key.nbytes + layer.value.nbytes for layer in self.layers)

    def evict(self, eviction: Eviction) -> None:
        """Drop the rows that `eviction` names and rebase the sink.

        The sink's keys become R(num_evicted) times what was first written: seen from tokens whose
        positions are never lowered, the sink moves up by what was dropped behind it. Always from
        the first copy, so that rounding does not add up over the rolls.
        """
        if not self._first_sink_keys:
            self._first_sink_keys = [
                layer.key[: _rows(eviction.sink, layer)].copy() for layer in self.layers
            ]
        angles = eviction.num_evicted * self._frequencies
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        for layer, first_keys in zip(self.layers, self._first_sink_keys, strict=True):
            sink = _rows(eviction.sink, layer)
            source = sink + _rows(eviction.dropped, layer)
            length = _rows(eviction.length, layer)
            for buffer in (layer.key, layer.value):
                _move_rows(buffer, source, sink, length - source)
            half = first_keys.shape[-1] // 2
            first, second = first_keys[..., :half], first_keys[..., half:]
            layer.key[:sink, :, :half] = first * cos - second * sin
            layer.key[:sink, :, half:] = second * cos + first * sin


def _rows(rows: Rows, layer: LayerBuffers) -> int:
    return rows.mod if layer.is_mod else rows.dense


def _move_rows(buffer: Float32Array, source: int, target: int, num_rows: int) -> None:
    # numpy would go through a temporary copy, because the ranges overlap.
    row_bytes = buffer.strides[0]
    base = buffer.ctypes.data
    ctypes.memmove(base + target * row_bytes, base + source * row_bytes, num_rows * row_bytes)
