"""The cache on the device, compared with `KvCache` in host memory."""

import numpy as np
import pytest

from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.plan.kv_window import NO_ROWS, Eviction, Rows
from mod_edge.plan.targets import Lowering
from mod_edge.runtime.cpu.kv_cache import KvCache
from mod_edge.runtime.device.device_cache import NUM_BUCKETS, DeviceCache, sink_angles
from tests.native.stand_in_driver import StandInCudart
from tests.runtime.stand_in_model import MAX_STEP_TOKENS

SINK = Rows(dense=14, mod=6)
# Rows move bit by bit. The sink is rotated by a graph here and by numpy there, both in float32:
# measured 0, keys up to 3. A rebase that misses an eviction of 20 tokens is off by 6.
ATOL_SINK = {"fp32": 1e-6, "fp16": 4e-3}
BUNDLES = (("tensorrt-delta", "fp32"), ("rtx", "fp32"), ("rtx", "fp16"))


@pytest.fixture(params=BUNDLES, ids="-".join)
def machine(request, make_machine):
    return make_machine(*request.param)


@pytest.fixture
def model(machine):
    return machine.load()


@pytest.fixture
def stream(model):
    with model.open_stream() as stream:
        yield stream


def filled(machine, stream):
    """The stream's cache and one in host memory with the same random rows everywhere."""
    lowering, cache = machine.bundle.lowering, stream._cache
    reference = KvCache(machine.config, lowering, cache.capacity)
    generator = np.random.default_rng(0)
    for layer, host in zip(cache.layers, reference.layers, strict=True):
        for address, buffer in ((layer.key, host.key), (layer.value, host.value)):
            buffer[:] = generator.normal(size=buffer.shape)
            machine.cudart.write(address, buffer)
    return cache, reference


def buffers_of(machine, cache, reference):
    """(ours, theirs, number of sink rows) of every buffer."""
    for layer, host in zip(cache.layers, reference.layers, strict=True):
        rows = SINK.mod if layer.is_mod else SINK.dense
        for address, buffer in ((layer.key, host.key), (layer.value, host.value)):
            ours = machine.cudart.read(address, buffer.shape, buffer.dtype)
            yield ours, buffer, rows


def evictions(capacity):
    """Evictions of a full cache: overlapping moves, moves that do not overlap, and none."""
    num_evicted = 0
    for dropped in (Rows(11, 3), Rows(120, 60), Rows(20, 0), capacity.minus(SINK)):
        num_evicted += dropped.dense
        yield Eviction(SINK, dropped, capacity, num_evicted)


def test_evictions_equal_those_in_host_memory(machine, model, stream):
    cache, reference = filled(machine, stream)
    atol = ATOL_SINK[machine.bundle.lowering.precision]
    for eviction in evictions(cache.capacity):
        cache.evict(eviction, model.rebase)
        reference.evict(eviction)
        for ours, theirs, sink in buffers_of(machine, cache, reference):
            axis = 0 if ours.ndim == 3 else 2
            first, rest = np.split(ours, [sink], axis)
            their_first, their_rest = np.split(theirs, [sink], axis)
            np.testing.assert_array_equal(rest, their_rest)
            np.testing.assert_allclose(first, their_first, rtol=0, atol=atol)


def test_a_sink_with_another_text_equals_that_in_host_memory(machine, model, stream):
    """Longer ones, for which rows of MoD layers move up, and a shorter one."""
    cache, reference = filled(machine, stream)
    kept = Rows(11, 3)
    length = cache.capacity.minus(Rows(30, 30))
    atol = ATOL_SINK[machine.bundle.lowering.precision]
    for num_evicted, added in ((0, None), (31, Rows(25, 25)), (40, Rows(4, 4)), (90, Rows(9, 9))):
        changes = [Eviction(SINK, Rows(11, 3), length, num_evicted=11)]
        if added is not None:
            dropped = Rows(14, 6)
            sink, left = kept.plus(added), length.minus(dropped).plus(added)
            changes = [
                Eviction(kept, dropped, length, 0, room=added),
                Eviction(sink, NO_ROWS, left, num_evicted),
            ]
        for eviction in changes:
            cache.evict(eviction, model.rebase)
            reference.evict(eviction)
        for ours, theirs, _ in buffers_of(machine, cache, reference):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def test_the_sink_is_always_rotated_from_its_first_copy(machine, model, stream):
    """200 evictions equal one eviction of as many tokens."""
    cache, reference = filled(machine, stream)
    first = Eviction(SINK, Rows(90, 50), cache.capacity, num_evicted=90)
    for number in range(1, 201):
        last = Eviction(SINK, Rows(90, 50), cache.capacity, num_evicted=90 * number)
        cache.evict(last, model.rebase)
    reference.evict(first)  # keeps the first copy
    reference.evict(last)
    for ours, theirs, sink in buffers_of(machine, cache, reference):
        take = [slice(None)] * (0 if ours.ndim == 3 else 2) + [slice(sink)]
        atol = ATOL_SINK[machine.bundle.lowering.precision]
        np.testing.assert_allclose(ours[tuple(take)], theirs[tuple(take)], rtol=0, atol=atol)


def test_an_eviction_does_not_wait_and_allocates_only_the_first_time(machine, model, stream):
    cache, _ = filled(machine, stream)
    for number in (1, 2):
        before = machine.cudart.calls.copy()
        cache.evict(Eviction(SINK, Rows(20, 10), cache.capacity, 20), model.rebase)
        calls = machine.cudart.calls - before
        assert calls["cudaStreamSynchronize"] == 0
        assert calls["cudaMalloc"] == (number == 1)
        assert calls["cudaMemcpyAsync cudaMemcpyHostToDevice"] == 1


def test_rows_move_in_pieces_no_longer_than_the_dropped_rows(machine, model, stream):
    cache, _ = filled(machine, stream)
    cache.evict(Eviction(SINK, Rows(20, 10), cache.capacity, 20), model.rebase)
    before = machine.cudart.calls.copy()
    cache.evict(Eviction(SINK, Rows(20, 10), cache.capacity, 40), model.rebase)
    calls = machine.cudart.calls - before
    wanted = 0
    for layer in cache.layers:
        dropped, sink = (10, SINK.mod) if layer.is_mod else (20, SINK.dense)
        wanted += 2 * -(-(layer.num_rows - sink - dropped) // dropped) + 1  # the sink's keys
    rows = calls["cudaMemcpy2DAsync"] + calls["cudaMemcpyAsync cudaMemcpyDeviceToDevice"]
    assert rows == wanted


def test_an_empty_sink_is_not_rebased(machine, model, stream):
    cache, reference = filled(machine, stream)
    eviction = Eviction(NO_ROWS, Rows(20, 10), cache.capacity, 20)
    cache.evict(eviction, model.rebase)
    reference.evict(eviction)
    for ours, theirs, _ in buffers_of(machine, cache, reference):
        np.testing.assert_array_equal(ours, theirs)


def test_every_buffer_is_zeroed_at_the_start(machine, stream):
    for layer in stream._cache.layers:
        for address in (layer.key, layer.value):
            assert not machine.cudart.read(address, (layer.num_rows, 2 * 16), "float16").any()


# ---- buckets ----


@pytest.fixture
def delta(make_config):
    driver, config = CudaDriver(StandInCudart()), make_config()
    cache = DeviceCache(
        driver,
        config,
        Lowering("tensorrt-delta", "fp32"),
        Rows(90, 50),
        max_step_tokens=MAX_STEP_TOKENS,
        angles=sink_angles(driver, config),
    )
    yield cache
    driver.close()


def test_a_bucket_holds_the_past_and_there_are_few_buckets(delta):
    buckets = set()
    for dense in range(91):
        for mod in range(min(dense, 50) + 1):
            past = Rows(dense, mod)
            bucket = delta.bucket(past)
            assert past.fits(bucket)
            assert bucket.fits(delta.capacity)
            assert min(bucket) >= 1
            buckets.add(bucket)
    assert len(buckets) == NUM_BUCKETS
    assert max(buckets) == delta.capacity


def test_in_place_graphs_have_no_buckets(make_machine):
    with make_machine("rtx", "fp16").open() as stream:
        assert stream._cache.bucket(Rows(3, 3)) is None
