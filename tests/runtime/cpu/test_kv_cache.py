"""The cache's buffers: evictions move rows exactly, and the sink never drifts."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from mod_edge.errors import CacheError
from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.plan.rope import inverse_frequencies
from mod_edge.plan.targets import CPU_FP32, Lowering
from mod_edge.runtime.cpu.kv_cache import KvCache

pytestmark = pytest.mark.numeric

# Error of the sink's keys after 1,000 evictions: measured 2.3e-7 (keys up to 4), float32's rounding
# of a cosine and of two products. Rotated in place each time, they are off by 3e-5 to 6e-5 (in half
# precision by 0.3); a rebase that misses one eviction of 11 tokens is off by 3.6.
ATOL_SINK = 1e-6
DRIFT = 1e-5
CAPACITY = Rows(dense=90, mod=50)
SINK = Rows(dense=14, mod=6)


@pytest.fixture
def config(make_config):
    return make_config()


@pytest.fixture(params=[CPU_FP32, Lowering("cuda", "fp32", CAPACITY)], ids=["delta", "in_place"])
def filled(config, request):
    """A cache of either dialect with random rows, and a copy of (key, value) by layer."""
    cache = KvCache(config, request.param, CAPACITY)
    generator = np.random.default_rng(0)
    for layer in cache.layers:
        for buffer in (layer.key, layer.value):
            buffer[:] = generator.normal(size=buffer.shape)
    return cache, [(key.copy(), value.copy()) for key, value in map(rows_in, cache.layers)]


def rows_in(layer):
    """Keys and values as token-major views (S, G, E), in either dialect."""
    return [
        buffer if buffer.ndim == 3 else buffer[0].swapaxes(0, 1)
        for buffer in (layer.key, layer.value)
    ]


def rows_of(rows, layer):
    return rows.mod if layer.is_mod else rows.dense


def rotated(keys, num_tokens, config):
    """R(num_tokens) of keys (S, G, E) in float64: RoPE in Llama's half-split form."""
    angles = num_tokens * inverse_frequencies(config.text_config)
    first, second = np.split(keys.astype(np.float64), 2, axis=-1)
    turned = (first + 1j * second) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


# ---- buffers ----


def test_every_layer_has_zeroed_buffers_of_its_geometry(config):
    cache = KvCache(config, CPU_FP32, CAPACITY)
    text = config.text_config
    for index, layer in enumerate(cache.layers):
        rows = CAPACITY.mod if index in config.mod_layers else CAPACITY.dense
        assert layer.is_mod == (index in config.mod_layers)
        for buffer in (layer.key, layer.value):
            assert buffer.shape == (rows, text.num_key_value_heads, text.head_dim)
            assert buffer.dtype == np.float32
            assert not buffer.any()
            assert buffer.flags.c_contiguous  # token-major: any run of rows is one view
    assert cache.size_bytes == sum(layer.key.nbytes + layer.value.nbytes for layer in cache.layers)


# ---- evictions ----


@pytest.mark.parametrize(
    ("dropped", "length"),
    [
        (Rows(11, 3), Rows(90, 50)),  # fewer than the rows after them: the ranges overlap
        (Rows(40, 30), Rows(90, 50)),
        (Rows(1, 1), Rows(60, 41)),
        (Rows(76, 44), Rows(90, 50)),  # everything but the sink
        (Rows(20, 0), Rows(80, 40)),
    ],
)
def test_rows_after_the_dropped_ones_move_down_bit_by_bit(filled, dropped, length):
    cache, before = filled
    cache.evict(Eviction(SINK, dropped, length, num_evicted=dropped.dense))
    for layer, (key, value) in zip(cache.layers, before, strict=True):
        now_key, now_value = rows_in(layer)
        sink, first = rows_of(SINK, layer), rows_of(SINK, layer) + rows_of(dropped, layer)
        end = rows_of(length, layer)
        left = end - rows_of(dropped, layer)
        np.testing.assert_array_equal(now_key[sink:left], key[first:end])
        np.testing.assert_array_equal(now_value[sink:left], value[first:end])
        np.testing.assert_array_equal(now_value[:sink], value[:sink])
        np.testing.assert_array_equal(now_key[end:], key[end:])
        np.testing.assert_array_equal(now_value[end:], value[end:])


def test_the_sinks_keys_rotate_by_the_evicted_stream_tokens_in_both_geometries(config, filled):
    cache, before = filled
    cache.evict(Eviction(SINK, Rows(22, 6), Rows(90, 50), num_evicted=22))
    for layer, (key, _) in zip(cache.layers, before, strict=True):
        now_key, _ = rows_in(layer)
        sink = rows_of(SINK, layer)
        wanted = rotated(key[:sink], 22, config)
        np.testing.assert_allclose(now_key[:sink], wanted, rtol=0, atol=ATOL_SINK)


def evictions(num_evictions):
    """Evictions of random numbers of frames and text tokens."""
    generator = np.random.default_rng(7)
    num_evicted = 0
    for _ in range(num_evictions):
        num_frames, num_text = generator.integers(1, 4), generator.integers(0, 9)
        dropped = Rows(int(11 * num_frames + num_text), int(3 * num_frames + num_text))
        num_evicted += dropped.dense
        yield Eviction(SINK, dropped, Rows(90, 50), num_evicted)


def test_a_thousand_evictions_leave_the_sink_as_exact_as_one(config, filled):
    cache, before = filled
    for eviction in evictions(1000):
        cache.evict(eviction)
    assert eviction.num_evicted > 20_000
    for layer, (key, value) in zip(cache.layers, before, strict=True):
        now_key, now_value = rows_in(layer)
        sink = rows_of(SINK, layer)
        wanted = rotated(key[:sink], eviction.num_evicted, config)
        np.testing.assert_allclose(now_key[:sink], wanted, rtol=0, atol=ATOL_SINK)
        np.testing.assert_array_equal(now_value[:sink], value[:sink])


def test_keys_rotated_repeatedly_in_place_drift(config, filled):
    """Why the first copy is kept: the same 1,000 rotations, each of the previous result."""
    cache, before = filled
    for eviction in evictions(1000):
        cache._first_sink_keys = []
        cache.evict(replace(eviction, num_evicted=eviction.dropped.dense))
    for layer, (key, _) in zip(cache.layers, before, strict=True):
        now_key, _ = rows_in(layer)
        sink = rows_of(SINK, layer)
        wanted = rotated(key[:sink], eviction.num_evicted, config)
        assert np.abs(now_key[:sink] - wanted).max() > DRIFT


@pytest.mark.parametrize("added", [Rows(3, 3), Rows(17, 17)], ids=["shorter", "longer"])
def test_a_sink_with_another_text_is_rotated_from_first_copies_too(config, filled, added):
    """The first rows of the sink stay; room is left and filled; then all of it moves up."""
    cache, before = filled
    kept, dropped, length = Rows(11, 3), Rows(14, 6), Rows(70, 30)
    cache.evict(Eviction(SINK, Rows(5, 5), Rows(75, 35), num_evicted=5))
    moved = [[rows.copy() for rows in rows_in(layer)] for layer in cache.layers]
    cache.evict(Eviction(kept, dropped, length, num_evicted=0, room=added))
    sink = kept.plus(added)
    generator = np.random.default_rng(1)
    fed = []
    for layer in cache.layers:
        rows = slice(rows_of(kept, layer), rows_of(sink, layer))
        for buffer in rows_in(layer):
            buffer[rows] = generator.normal(size=buffer[rows].shape)
        fed.append(rows_in(layer)[0][rows].copy())
    left = length.minus(dropped).plus(added)
    for num_evicted in (30, 41):
        cache.evict(Eviction(sink, Rows(0, 0), left, num_evicted))
    for layer, (key, _), now, new in zip(cache.layers, before, moved, fed, strict=True):
        first, end = rows_of(sink, layer), rows_of(left, layer)
        source = rows_of(kept, layer) + rows_of(dropped, layer)
        for buffer, old in zip(rows_in(layer), now, strict=True):
            np.testing.assert_array_equal(buffer[first:end], old[source : rows_of(length, layer)])
        written = np.concatenate([key[: rows_of(kept, layer)], new])
        wanted = rotated(written, 41, config)
        np.testing.assert_allclose(rows_in(layer)[0][:first], wanted, rtol=0, atol=ATOL_SINK)


def test_evicting_allocates_no_second_cache(config):
    capacity = Rows(20_000, 10_000)
    cache = KvCache(config, CPU_FP32, capacity)
    eviction = Eviction(SINK, Rows(110, 30), capacity, num_evicted=110)
    cache.evict(eviction)  # the first eviction copies the sink
    tracemalloc.start()
    cache.evict(eviction)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < cache.layers[0].key.nbytes / 50


@pytest.mark.parametrize("num_rows", [10**14, 10**18, 10**30])
def test_a_window_larger_than_memory_is_an_error(config, num_rows):
    with pytest.raises(CacheError, match=rf"{num_rows} tokens does not fit .*lower --window"):
        KvCache(config, CPU_FP32, Rows(num_rows, num_rows))
