"""Percentiles of the newest times."""

import sys

import numpy as np
import pytest

from mod_edge.runtime import stats
from mod_edge.runtime.stats import Latencies

ATOL_MS = 1e-3  # printed with three digits, kept in float32: 6e-5 at 1000 ms


def latencies_of(times_ms):
    latencies = Latencies()
    for time_ms in times_ms:
        latencies.add(time_ms)
    return latencies


def test_before_the_first_time_all_percentiles_are_zero():
    assert Latencies().percentiles() == {"p50": 0.0, "p95": 0.0}


def test_one_time_is_every_percentile():
    assert latencies_of([7.25]).percentiles() == {"p50": 7.25, "p95": 7.25}


@pytest.mark.parametrize("num_times", [2, 3, 100, 4095])
def test_percentiles_are_those_of_all_times_while_there_is_room(num_times):
    times_ms = np.random.default_rng(num_times).uniform(0, 1000, num_times)
    found = latencies_of(times_ms).percentiles()
    assert found["p50"] == pytest.approx(np.percentile(times_ms, 50), abs=ATOL_MS)
    assert found["p95"] == pytest.approx(np.percentile(times_ms, 95), abs=ATOL_MS)


def test_unused_room_does_not_count_as_times_of_zero():
    assert latencies_of([5.0] * 3).percentiles() == {"p50": 5.0, "p95": 5.0}


@pytest.mark.parametrize("num_times", [10, 11, 13, 20, 27])
def test_only_the_newest_times_count(monkeypatch, num_times):
    monkeypatch.setattr(stats, "CAPACITY", 10)
    times_ms = np.random.default_rng(1).uniform(0, 1000, num_times)
    found = latencies_of(times_ms).percentiles()
    newest = times_ms[-10:]
    assert found["p50"] == pytest.approx(np.percentile(newest, 50), abs=ATOL_MS)
    assert found["p95"] == pytest.approx(np.percentile(newest, 95), abs=ATOL_MS)


def test_memory_does_not_grow_with_the_stream():
    latencies = latencies_of([1.0])
    before = sum(map(sys.getsizeof, vars(latencies).values()))
    for _ in range(3 * stats.CAPACITY):
        latencies.add(2.0)
    assert sum(map(sys.getsizeof, vars(latencies).values())) == before
    assert latencies.percentiles() == {"p50": 2.0, "p95": 2.0}


def test_percentiles_are_plain_numbers_for_json():
    assert {type(value) for value in latencies_of([1.5, 2.5]).percentiles().values()} == {float}
