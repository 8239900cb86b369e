"""Lower bounds from measured rates."""

import pytest

from mod_edge.bench.ceilings import Ceilings, Work, measure_ceilings

CEILINGS = Ceilings(
    bytes_per_s=1e9, float_flops_per_s=1e10, int8_flops_per_s=1e11, cache_bytes=1000
)


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


def test_works_add_up():
    assert Work(1, 2, 3).plus(Work(10, 20, 30)) == Work(11, 22, 33)


def test_measured_rates_are_positive(quick):
    found = measure_ceilings(num_threads=1, cache_bytes=4096)
    assert min(found.bytes_per_s, found.float_flops_per_s, found.int8_flops_per_s) > 0
    assert found.to_json()["cache_bytes"] == 4096
