"""The rolling KV cache's buffers in host memory, preallocated and written by the graphs.

`delta` graphs take token-major buffers (S, G, E): the past and the new rows of a step are
contiguous views of one buffer, which the graph reads and writes. `in_place` graphs take whole
head-major buffers (1, G, S, E) and write into them. Neither copies. An eviction moves the remaining
rows down with one memmove per contiguous block and rebases the sink.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mod_edge.config import ModelConfig
from mod_edge.errors import CacheError
from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.plan.rope import inverse_frequencies
from mod_edge.plan.targets import Lowering

Buffer = npt.NDArray[Any]  # of the lowering's dtype


@dataclass(frozen=True)
class LayerBuffers:
    """One layer's keys (rotated) and values, in the dialect's order of dims."""

    key: Buffer
    value: Buffer
    is_mod: bool

    def blocks(self, buffer: Buffer) -> Buffer:
        """`buffer` as (blocks, S, row): one block of all heads, or one per head."""
        is_token_major = buffer.ndim == 3
        blocks: Buffer = buffer.reshape(1, len(buffer), -1) if is_token_major else buffer[0]
        return blocks

    @property
    def row_axis(self) -> int:
        """The axis of rows in `rows`."""
        return 0 if self.key.ndim == 3 else 1

    def rows(self, buffer: Buffer, first: int, end: int) -> Buffer:
        """A view of these rows of `buffer`, (rows, G, E) or (G, rows, E)."""
        return buffer[first:end] if buffer.ndim == 3 else buffer[0, :, first:end]


class KvCache:
    """All layers' buffers; `KvWindow` knows which rows are in use."""

    def __init__(self, config: ModelConfig, lowering: Lowering, capacity: Rows) -> None:
        """Allocate zeroed buffers: a NaN in a masked row would spoil the attention.

        Raises:
            CacheError: not enough memory.
        """
        text = config.text_config
        groups, size = text.num_key_value_heads, text.head_dim
        self.capacity = capacity
        self._frequencies = inverse_frequencies(text)
        self._first_sink_keys: list[Buffer] = []
        self.layers: list[LayerBuffers] = []
        for index in range(text.num_hidden_layers):
            is_mod = index in config.mod_layers
            rows = capacity.of(is_mod)
            shape = (rows, groups, size) if lowering.dialect == "delta" else (1, groups, rows, size)
            try:
                key, value = np.zeros(shape, lowering.dtype), np.zeros(shape, lowering.dtype)
            except (MemoryError, ValueError, OverflowError) as exc:  # ValueError: beyond 2**63
                raise CacheError(
                    f"a KV cache of {capacity.dense} tokens does not fit in this machine's memory; "
                    "lower --window or --kv-budget"
                ) from exc
            self.layers.append(LayerBuffers(key, value, is_mod))

    @property
    def size_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(layer.key.nbytes + layer.value.nbytes for layer in self.layers)

    def evict(self, eviction: Eviction) -> None:
        """Drop the rows that `eviction` names and rebase the sink.

        The sink's keys become R(num_evicted) times the keys as first written: positions of other
        tokens are never lowered, so the sink moves up by the number of tokens dropped after it.
        Starting from the first copy keeps rounding errors from adding up over the rolls.
        """
        self._keep_first_keys(eviction.sink)
        angles = eviction.num_evicted * self._frequencies
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        for layer, first_keys in zip(self.layers, self._first_sink_keys, strict=True):
            sink = eviction.sink.of(layer.is_mod)
            source = sink + eviction.dropped.of(layer.is_mod)
            target = sink + eviction.room.of(layer.is_mod)
            length = eviction.length.of(layer.is_mod)
            for buffer in (layer.key, layer.value):
                for block in layer.blocks(buffer):
                    _move_rows(block, source, target, length - source)
            half = first_keys.shape[-1] // 2
            first, second = first_keys[..., :half], first_keys[..., half:]
            rebased = layer.rows(layer.key, 0, sink)
            rebased[..., :half] = first * cos - second * sin
            rebased[..., half:] = second * cos + first * sin

    def _keep_first_keys(self, sink: Rows) -> None:
        """Hold the first copies of these rows: those held already, and later rows as they are."""
        held = self._first_sink_keys or [
            layer.rows(layer.key, 0, 0).astype(np.float32) for layer in self.layers
        ]
        self._first_sink_keys = [
            _resized(layer, keys, sink.of(layer.is_mod))
            for layer, keys in zip(self.layers, held, strict=True)
        ]


def _resized(layer: LayerBuffers, first_keys: Buffer, num_rows: int) -> Buffer:
    """The first `num_rows` first copies; those that are missing are copied from the cache."""
    axis = layer.row_axis
    num_held = first_keys.shape[axis]
    if num_rows <= num_held:
        return first_keys[:num_rows] if axis == 0 else first_keys[:, :num_rows]
    more = layer.rows(layer.key, num_held, num_rows).astype(np.float32)
    return np.concatenate([first_keys, more], axis)


def _move_rows(buffer: Buffer, source: int, target: int, num_rows: int) -> None:
    # numpy would make a temporary copy, because the ranges overlap
    row_bytes = buffer.strides[0]
    base = buffer.ctypes.data
    ctypes.memmove(base + target * row_bytes, base + source * row_bytes, num_rows * row_bytes)
