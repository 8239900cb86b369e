"""Means over seeds, their intervals, and differences paired by seed."""

import math

import pytest

from benchmarks.paper_tables.measures import ANSWERS, F1, Estimate, difference, estimate
from tests.benchmarks.paper_tables.conftest import run_named


@pytest.fixture(scope="module")
def results_of(planted_result):
    """`results_of(mod=[0.5, 0.6], ...)`: results by run, with these F1 by seed."""

    def make(**f1):
        return {
            (run := run_named(f"{arm}-{seed}")): planted_result(run, f1=value)
            for arm, values in f1.items()
            for seed, value in enumerate(values)
        }

    return make


def test_the_estimate_of_three_values_equals_one_by_hand():
    found = estimate([1.0, 2.0, 3.0])  # standard deviation 1, over the square root of 3
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3))
    assert found.num_seeds == 3


def test_one_value_has_no_interval_and_no_value_no_mean():
    assert estimate([0.25]) == Estimate(0.25, None, 1)
    assert estimate([]) is None


def test_a_difference_uses_the_seeds_that_both_arms_have(results_of):
    found = difference(results_of(mod=[0.5, 0.7, 0.9], full=[0.4, 0.5]), "mod", "full", F1)
    assert found.num_seeds == 2
    assert found.mean == pytest.approx(0.15)


def test_pairing_by_seed_finds_differences_that_unpaired_intervals_hide(results_of):
    results = results_of(mod=[0.3, 0.5, 0.7], full=[0.2, 0.41, 0.6])
    assert difference(results, "mod", "full", F1).is_clear


@pytest.mark.parametrize(
    ("found", "is_clear"),
    [
        (Estimate(-0.2, 0.1, 3), True),
        (Estimate(0.1, 0.2, 3), False),
        (Estimate(0.0, 0.0, 3), False),  # equal figures for every seed
        (Estimate(0.4, None, 1), False),
    ],
)
def test_a_difference_is_clear_if_its_interval_excludes_zero(found, is_clear):
    assert found.is_clear == is_clear


def test_answers_are_a_share_of_the_questions_and_none_without_questions():
    assert ANSWERS.value({"free_running": {"num_answers_right": 3, "num_answers": 4}}) == 0.75
    assert ANSWERS.value({"free_running": {"num_answers_right": 0, "num_answers": 0}}) is None
