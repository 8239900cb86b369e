"""A short bench of the tiny bundle, shared by the tests of this folder."""

import pytest

from mod_edge.bench import bench, ceilings, timing
from mod_edge.bench.bench import BenchOptions, bench_bundle
from mod_edge.native import matmul_rates

WINDOW = "400"


@pytest.fixture(scope="module")
def quick():
    """Measurements so short that their figures mean nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceilings, "LEAST_BUFFER_BYTES", 2**20)
        patch.setattr(ceilings, "MOST_BUFFER_BYTES", 2**20)
        patch.setattr(matmul_rates, "NUM_ROWS", (2,))
        patch.setattr(matmul_rates, "NUM_RUNS", 1)
        patch.setattr(timing, "TURN_S", 0.001)
        patch.setattr(timing, "MIN_ROUNDS", 2)
        patch.setattr(bench, "SMALL_FILL_TOKENS", 60)
        yield


@pytest.fixture(scope="module")
def report(tiny_bundle, quick):
    """The bench of the tiny bundle with a window of 400 tokens."""
    return bench_bundle(tiny_bundle, BenchOptions(window=WINDOW, seconds=0.01))
