"""Lower bounds from measured rates."""

import pytest

from mod_edge.bench.ceilings import Ceilings, Work, measure_ceilings, measure_gpu_ceilings
from mod_edge.errors import CacheError
from mod_edge.native.cuda_driver import CudaDriver
from tests.native.stand_in_driver import CACHE_BYTES, StandInCudart

CEILINGS = Ceilings(
    bytes_per_s=1e9, cache_bytes=1000, float_flops_per_s=1e10, int8_flops_per_s=1e11
)
MOVING = Ceilings(bytes_per_s=1e9, cache_bytes=1000)


@pytest.mark.parametrize(
    ("work", "least_ms"),
    [
        (Work(num_bytes=2e9, float_flops=1e10), 2000),  # moving takes longer
        (Work(num_bytes=1e9, float_flops=2e10), 2000),  # computing does
        (Work(float_flops=1e10, int8_flops=1e11), 2000),  # one after the other
        (Work(num_bytes=1000, float_flops=1e4), 0.001),  # in the cache already
    ],
    ids=["moving", "computing", "two kinds", "cached"],
)
def test_a_bound_is_the_longer_of_moving_and_computing(work, least_ms):
    assert CEILINGS.least_ms(work) == pytest.approx(least_ms)


def test_without_rates_of_products_a_bound_is_moving_alone():
    assert MOVING.least_ms(Work(num_bytes=2e9, float_flops=1e15)) == pytest.approx(2000)
    assert MOVING.least_ms(Work(num_bytes=1000, float_flops=1e15)) is None


def test_works_add_up():
    assert Work(1, 2, 3).plus(Work(10, 20, 30)) == Work(11, 22, 33)


def test_the_best_of_two_measurements_takes_each_rate_from_either():
    other = Ceilings(2e9, 1000, 1e9, 1e12)
    assert CEILINGS.best(other) == Ceilings(2e9, 1000, 1e10, 1e12)
    assert MOVING.best(MOVING) == MOVING


def test_measured_rates_are_positive(quick):
    found = measure_ceilings(num_threads=1, cache_bytes=4096)
    assert min(found.bytes_per_s, found.float_flops_per_s, found.int8_flops_per_s) > 0
    assert found.to_json()["cache_bytes"] == 4096


@pytest.fixture
def gpu(quick):
    driver = CudaDriver(StandInCudart(memory_bytes=3 * 2**20))
    yield driver
    driver.close()


def test_copies_on_a_gpu_are_measured_in_memory_that_is_freed_again(gpu):
    found = measure_gpu_ceilings(gpu)
    assert found.bytes_per_s > 0
    assert (found.float_flops_per_s, found.cache_bytes) == (None, CACHE_BYTES)
    assert gpu.used_bytes == 0


def test_without_memory_for_a_copy_the_first_block_is_freed(gpu):
    gpu.malloc(2 * 2**20, "something else")
    with pytest.raises(CacheError, match="for measuring copies"):
        measure_gpu_ceilings(gpu)
    assert gpu.used_bytes == 2 * 2**20
