"""Sentences by rule: the same figures, the same words."""

import pytest

from benchmarks.paper_tables.arms import PLAN
from benchmarks.paper_tables.findings import (
    ANSWERS,
    F1,
    LM_PPL,
    Claim,
    Question,
    difference,
    outcome,
    sentence,
)
from benchmarks.paper_tables.intervals import Estimate

EQUAL = Claim("mod", "full", "equal")
AHEAD = Claim("mod", "uniform", "better")
UNSEEN = Claim("mod", "delta", None)


@pytest.fixture(scope="module")
def results_of(planted_result):
    """`results_of(mod=[0.5, 0.6], ...)`: results by run, with these F1 by seed."""

    def make(**f1):
        runs = {(run.arm.name, run.seed): run for run in PLAN}
        return {
            runs[arm, seed]: planted_result(runs[arm, seed], f1=value)
            for arm, values in f1.items()
            for seed, value in enumerate(values)
        }

    return make


def said(results, claim):
    return sentence(results, Question("", "", (), (claim,)))


@pytest.mark.parametrize(
    ("claim", "other", "words"),
    [
        (
            EQUAL,
            [0.51, 0.49, 0.50],
            "MoD and full computation cannot be told apart here (F1 +0.000 ± 0.025), as in the "
            "paper.",
        ),
        (
            EQUAL,
            [0.61, 0.59, 0.60],
            "MoD is worse than full computation (F1 \u22120.100 ± 0.025), where the paper has them "
            "level.",
        ),
        (
            AHEAD,
            [0.41, 0.39, 0.40],
            "MoD is better than uniform selection (F1 +0.100 ± 0.025), as in the paper.",
        ),
        (
            AHEAD,
            [0.51, 0.49, 0.50],
            "MoD and uniform selection cannot be told apart here (F1 +0.000 ± 0.025), where the "
            "paper has MoD ahead.",
        ),
        (
            AHEAD,
            [0.61, 0.59, 0.60],
            "MoD is worse than uniform selection (F1 \u22120.100 ± 0.025), where the paper has MoD "
            "ahead.",
        ),
        (
            UNSEEN,
            [0.41, 0.39, 0.40],
            "MoD is better than delta scaling (F1 +0.100 ± 0.025), for which we have no figure of "
            "the paper.",
        ),
    ],
)
def test_a_claim_is_told_by_its_interval_and_held_against_the_paper(
    results_of, claim, other, words
):
    assert said(results_of(**{"mod": [0.5, 0.5, 0.5], claim.other: other}), claim) == words


def test_one_seed_tells_nothing_apart(results_of):
    words = said(results_of(mod=[0.5], full=[0.9]), EQUAL)
    assert words == (
        "MoD and full computation share only one seed, which does not tell them apart "
        "(F1 \u22120.400)."
    )


def test_an_arm_that_was_not_run_is_said_to_be_missing(results_of):
    assert said(results_of(mod=[0.5]), EQUAL) == "MoD and full computation have not both been run."


def test_a_difference_is_taken_over_the_seeds_that_both_have(results_of):
    found = difference(results_of(mod=[0.5, 0.7, 0.9], full=[0.4, 0.5]), EQUAL, F1)
    assert found.num_seeds == 2
    assert found.mean == pytest.approx(0.15)


def test_pairing_by_seed_sees_what_unpaired_intervals_would_hide(results_of):
    results = results_of(mod=[0.3, 0.5, 0.7], full=[0.2, 0.41, 0.6])
    assert outcome(difference(results, EQUAL, F1), F1) == "better"


def test_a_lower_perplexity_is_better():
    assert outcome(Estimate(-0.2, 0.1, 3), LM_PPL) == "better"
    assert outcome(Estimate(0.2, 0.1, 3), LM_PPL) == "worse"


def test_equal_figures_of_every_seed_cannot_be_told_apart():
    assert outcome(Estimate(0.0, 0.0, 3), F1) == "open"


def test_answers_are_a_share_of_the_questions_and_nothing_where_there_are_none():
    assert ANSWERS.value({"free_running": {"num_answers_right": 3, "num_answers": 4}}) == 0.75
    assert ANSWERS.value({"free_running": {"num_answers_right": 0, "num_answers": 0}}) is None
