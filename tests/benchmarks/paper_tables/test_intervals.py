"""Means and their intervals, by hand and by integration."""

import math

import pytest

from benchmarks.paper_tables.intervals import T_QUANTILES, Estimate, estimate

# Of the probability. Rounding to three digits gives 1.4e-5 at most, one degree of freedom off 1e-3.
ATOL_QUANTILE = 2e-5


def density(t, freedom):
    """Of Student's t."""
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2)
    return scale / math.sqrt(freedom * math.pi) * (1 + t * t / freedom) ** (-(freedom + 1) / 2)


@pytest.mark.parametrize(("freedom", "quantile"), [*enumerate(T_QUANTILES, start=1)])
def test_the_quantiles_leave_two_and_a_half_percent_above_them(freedom, quantile):
    count = 20_000  # Simpson's rule from 0 to the quantile
    width = quantile / count
    weights = [1, *(4 if number % 2 else 2 for number in range(1, count)), 1]
    area = width / 3 * sum(w * density(n * width, freedom) for n, w in enumerate(weights))
    assert 0.5 + area == pytest.approx(0.975, abs=ATOL_QUANTILE)


def test_three_values_by_hand():
    found = estimate([1.0, 2.0, 3.0])  # standard deviation 1, over the square root of 3
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3))
    assert found.num_seeds == 3


def test_one_value_has_no_interval():
    assert estimate([0.25]) == Estimate(0.25, None, 1)


def test_no_value_has_no_mean():
    assert estimate([]) is None
