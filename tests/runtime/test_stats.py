"""Percentiles of the newest times."""

import sys

import numpy as np
import pytest

from mod_edge.runtime.stats import CAPACITY, Latencies

ATOL_MS = 1e-3  # printed with three digits, kept in float32: 6e-5 at 1000 ms


def latencies_of(times_ms):
    latencies = Latencies()
    for time_ms in times_ms:
        latencies.add(time_ms)
    return latencies


def test_before_the_first_time_all_percentiles_are_zero():
    assert Latencies().percentiles() == {"p50": 0.0, "p95": 0.0}


@pytest.mark.parametrize("num_times", [1, 2, 3, 100, 4095, 4096, 4097, 8192, 10_000])
def test_percentiles_are_those_of_the_newest_times(num_times):
    times_ms = np.random.default_rng(num_times).uniform(0, 1000, num_times)
    found = latencies_of(times_ms).percentiles()
    newest = times_ms[-CAPACITY:]
    assert found["p50"] == pytest.approx(np.percentile(newest, 50), abs=ATOL_MS)
    assert found["p95"] == pytest.approx(np.percentile(newest, 95), abs=ATOL_MS)
    assert {type(value) for value in found.values()} == {float}  # not numpy's: for JSON


def test_memory_does_not_grow_with_the_stream():
    latencies = latencies_of([1.0])
    before = sum(map(sys.getsizeof, vars(latencies).values()))
    for _ in range(3 * CAPACITY):
        latencies.add(2.0)
    assert sum(map(sys.getsizeof, vars(latencies).values())) == before
    assert latencies.percentiles() == {"p50": 2.0, "p95": 2.0}
