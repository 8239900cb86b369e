"""The rolling KV cache's buffers in device memory, in the layout of the graphs' dialect.

`in_place`: buffers are (G, S, E), past and present at one address; the engine writes its new rows
into them. `delta`: buffers are (S, G, E); an engine reads a bucket of rows from the front and
writes its new rows to a separate buffer, from which they are appended, because its inputs and
outputs must not overlap.

When rows are copied, both are runs of S rows: G runs (one per head) with rows of E values, or one
run with rows of G*E values.
"""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mod_edge.config import ModelConfig
from mod_edge.native.cuda_driver import CudaDriver, aligned
from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.plan.rope import inverse_frequencies
from mod_edge.plan.targets import ITEM_BYTES, Lowering
from mod_edge.runtime.device.graph_set import GraphContext
from mod_edge.runtime.device.step_inputs import FLOAT32_BYTES, UploadBlocks

PURPOSE = "the KV cache"
# Each bucket has its own shapes, and repeated shapes get a CUDA graph, so use few buckets. A full
# window stays in the last bucket if an eighth of it is dropped at once.
NUM_BUCKETS = 4


@dataclass(frozen=True)
class DeviceLayer:
    """Addresses of one layer's buffers; `new_*` are 0 if the graph writes into the cache."""

    is_mod: bool
    num_rows: int
    key: int
    value: int
    new_key: int = 0
    new_value: int = 0


class Runs(NamedTuple):
    """A row in every run: its address in the first run, and the rows from one run to the next."""

    address: int
    num_rows: int


@dataclass(frozen=True)
class FirstSinkKeys:
    """The keys of `sink` as first written, by layer; runs follow each other without gaps."""

    sink: Rows
    addresses: tuple[int, ...]
    rebased: int  # where the rebase graph writes


class DeviceCache:
    """All layers' buffers; `KvWindow` knows which rows are in use."""

    def __init__(
        self,
        driver: CudaDriver,
        config: ModelConfig,
        lowering: Lowering,
        capacity: Rows,
        *,
        max_step_tokens: int,
        angles: UploadBlocks,
    ) -> None:
        """Allocate zeroed buffers: a NaN in a masked row would spoil the attention.

        Args:
            driver: the device.
            config: the model's.
            lowering: of its graphs.
            capacity: rows of the cache.
            max_step_tokens: largest T.
            angles: from `sink_angles`; caches of one device may share it.

        Raises:
            CacheError: not enough memory on the device.
        """
        text = config.text_config
        item_bytes = ITEM_BYTES[lowering.dtype]
        self.capacity = capacity
        self._driver = driver
        self._heads = text.num_key_value_heads
        self._is_delta = lowering.dialect == "delta"
        self._num_runs = 1 if self._is_delta else self._heads
        self._token_bytes = self._heads * text.head_dim * item_bytes
        self._row_bytes = self._token_bytes // self._num_runs
        self._frequencies = inverse_frequencies(text)
        self._first: FirstSinkKeys | None = None
        self._angles = angles
        self._angle_bytes = _angle_bytes(config)
        self._blocks: list[int] = []
        with ExitStack() as release:
            release.callback(self.close)  # frees the layers allocated before one failed
            self.layers = [
                self._take_layer(index in config.mod_layers, max_step_tokens)
                for index in range(text.num_hidden_layers)
            ]
            release.pop_all()

    def close(self) -> None:
        """Free the buffers; the device must be idle."""
        while self._blocks:
            self._driver.free(self._blocks.pop())

    def addresses(self, index: int) -> dict[str, int]:
        """Addresses of the layer's cache tensors, by tensor name."""
        layer = self.layers[index]
        past = {"past_key": layer.key, "past_value": layer.value}
        if self._is_delta:
            return past | {"new_key": layer.new_key, "new_value": layer.new_value}
        return past | {"present_key": layer.key, "present_value": layer.value}

    def bucket(self, past: Rows) -> Rows | None:
        """Rows that a `delta` step binds as its past, at least 1; None for `in_place`."""
        if not self._is_delta:
            return None
        # One bucket number for both geometries, or every pair would be a shape.
        sizes = [math.ceil(rows / NUM_BUCKETS) for rows in self.capacity]
        number = max(1, *(math.ceil(rows / size) for rows, size in zip(past, sizes, strict=True)))
        dense, mod = (
            min(number * size, rows) for size, rows in zip(sizes, self.capacity, strict=True)
        )
        return Rows(dense, mod)

    def append(self, past: Rows, added: Rows) -> None:
        """Copy the new rows of a `delta` step into the cache, after the past."""
        if not self._is_delta:
            return
        for layer in self.layers:
            first = past.of(layer.is_mod) * self._row_bytes
            size_bytes = added.of(layer.is_mod) * self._row_bytes
            self._driver.copy(layer.key + first, layer.new_key, size_bytes)
            self._driver.copy(layer.value + first, layer.new_value, size_bytes)

    def evict(self, eviction: Eviction, rebase: GraphContext) -> None:
        """Drop the rows that `eviction` names and rebase the sink as `KvCache.evict` does.

        Does not wait for the device, unless the sink's size changes. `rebase` is the graph that
        rotates keys.
        """
        if self._first is None or self._first.sink != eviction.sink:
            self._first = self._keep_first(eviction.sink, self._first)
        self._upload_angles(eviction.num_evicted)
        for layer, first_keys in zip(self.layers, self._first.addresses, strict=True):
            sink = eviction.sink.of(layer.is_mod)
            source = sink + eviction.dropped.of(layer.is_mod)
            target = sink + eviction.room.of(layer.is_mod)
            num_moved = eviction.length.of(layer.is_mod) - source
            for buffer in (layer.key, layer.value):
                self._move_rows(layer, buffer, source, target, num_moved)
            if sink:
                self._rebase(layer, first_keys, sink, rebase)

    def _take_layer(self, is_mod: bool, max_step_tokens: int) -> DeviceLayer:
        num_rows = self.capacity.of(is_mod)
        size_bytes = num_rows * self._token_bytes
        key, value = (self._take_zeroed(size_bytes) for _ in range(2))
        if not self._is_delta:
            return DeviceLayer(is_mod, num_rows, key, value)
        size_bytes = max_step_tokens * self._token_bytes
        new_key, new_value = (self._take(size_bytes) for _ in range(2))
        return DeviceLayer(is_mod, num_rows, key, value, new_key, new_value)

    def _take(self, size_bytes: int) -> int:
        self._blocks.append(self._driver.malloc(size_bytes, PURPOSE))
        return self._blocks[-1]

    def _give_back(self, address: int) -> None:
        self._blocks.remove(address)
        self._driver.free(address)

    def _take_zeroed(self, size_bytes: int) -> int:
        self._blocks.append(self._driver.malloc_zeroed(size_bytes, PURPOSE))
        return self._blocks[-1]

    def _keep_first(self, sink: Rows, held: FirstSinkKeys | None) -> FirstSinkKeys:
        """First copies of the sink: those held already, and later rows as they are."""
        sizes = [aligned(sink.of(layer.is_mod) * self._token_bytes) for layer in self.layers]
        base = self._take(sum(sizes) + max(sizes))
        addresses = tuple(base + sum(sizes[:index]) for index in range(len(sizes)))
        for index, (layer, address) in enumerate(zip(self.layers, addresses, strict=True)):
            num_rows, num_held = sink.of(layer.is_mod), 0
            if held is not None:
                held_rows = held.sink.of(layer.is_mod)
                num_held = min(held_rows, num_rows)
                ours = Runs(held.addresses[index], held_rows)
                self._copy_rows(Runs(address, num_rows), ours, num_held)
            first = num_held * self._row_bytes
            self._copy_rows(
                Runs(address + first, num_rows),
                Runs(layer.key + first, layer.num_rows),
                num_rows - num_held,
            )
        if held is not None:
            self._give_back(held.addresses[0])
        return FirstSinkKeys(sink, addresses, base + sum(sizes))

    def _upload_angles(self, num_evicted: int) -> None:
        angles = num_evicted * self._frequencies
        block = self._angles.next_block().array
        for place, function in ((0, np.cos), (self._angle_bytes, np.sin)):
            out = block[place:][: angles.size * FLOAT32_BYTES].view(np.float32)
            function(angles, out=out, casting="same_kind")
        self._angles.upload(2 * self._angle_bytes)

    def _rebase(self, layer: DeviceLayer, first_keys: int, sink: int, rebase: GraphContext) -> None:
        assert self._first is not None
        addresses = {
            "key": first_keys,
            "cos": self._angles.address,
            "sin": self._angles.address + self._angle_bytes,
            "rebased_key": self._first.rebased,
        }
        rebase.bind(addresses, {"B": sink * self._heads})
        rebase.enqueue()
        rebased, keys = Runs(self._first.rebased, sink), Runs(layer.key, layer.num_rows)
        self._copy_rows(keys, rebased, sink)

    def _move_rows(
        self, layer: DeviceLayer, buffer: int, source: int, target: int, num_rows: int
    ) -> None:
        """Move rows piece by piece: source and target of a copy must not overlap."""
        step = abs(source - target)
        if not step:
            return
        pieces = range(0, num_rows, step)
        # Up from the last piece on, so that none is overwritten before it is moved.
        for first in pieces if source > target else reversed(pieces):
            self._copy_rows(
                Runs(buffer + (target + first) * self._row_bytes, layer.num_rows),
                Runs(buffer + (source + first) * self._row_bytes, layer.num_rows),
                min(step, num_rows - first),
            )

    def _copy_rows(self, target: Runs, source: Runs, num_rows: int) -> None:
        """Copy the first rows of every run."""
        if not num_rows:
            return
        width = num_rows * self._row_bytes
        if self._num_runs == 1:
            self._driver.copy(target.address, source.address, width)
            return
        self._driver.copy_rows(
            target.address,
            target.num_rows * self._row_bytes,
            source.address,
            source.num_rows * self._row_bytes,
            width=width,
            height=self._num_runs,
        )


def sink_angles(driver: CudaDriver, config: ModelConfig) -> UploadBlocks:
    """Memory for the cos and sin by which a roll rotates the sink's keys."""
    return UploadBlocks(driver, 2 * _angle_bytes(config), PURPOSE)


def _angle_bytes(config: ModelConfig) -> int:
    return aligned(config.text_config.head_dim // 2 * FLOAT32_BYTES)
