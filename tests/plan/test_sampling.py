"""Sampling, compared with the warpers of transformers, and what a seed promises."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from mod_edge.errors import ConfigError
from mod_edge.plan.sampling import GREEDY, Sampler, Sampling, candidates

VOCABULARY = 301
# Two softmaxes in float64: measured 2e-16. A token too many or too few changes all by 1e-5 or more.
ATOL = 1e-12


def random_logits(seed, *, spread=3.0):
    return np.random.default_rng(seed).normal(0, spread, VOCABULARY).astype(np.float32)


def theirs(logits, temperature, top_p):
    """Probabilities (V,) after the warpers of transformers, in float64."""
    scores = torch.from_numpy(logits).double()[None]
    scores = TemperatureLogitsWarper(temperature)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores.softmax(dim=-1)[0].numpy()


def ours(logits, temperature, top_p):
    """Probabilities (V,) of `candidates`, 0 for tokens that are left out."""
    token_ids, probabilities = candidates(logits, Sampling(temperature, top_p))
    every = np.zeros(logits.size)
    every[token_ids] = probabilities
    return every


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("temperature", [0.2, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_tokens_and_probabilities_are_those_of_transformers(seed, temperature, top_p):
    logits = random_logits(seed)
    wanted, got = theirs(logits, temperature, top_p), ours(logits, temperature, top_p)
    assert ((got > 0) == (wanted > 0)).all()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=ATOL)


@given(st.integers(0, 10**6), st.floats(0.05, 5), st.floats(0.01, 1))
def test_the_kept_tokens_are_the_fewest_that_reach_top_p(seed, temperature, top_p):
    logits = random_logits(seed)
    every = ours(logits, temperature, 1.0)
    kept = ours(logits, temperature, top_p) > 0
    assert every[kept].sum() >= top_p - ATOL
    assert every[kept].sum() - every[kept].min() < top_p + ATOL
    assert every[kept].min() >= every[~kept].max(initial=0)


def test_greedy_takes_the_most_likely_token():
    for seed in range(20):
        logits = random_logits(seed)
        assert Sampler(GREEDY).choose(logits) == logits.argmax()


@pytest.mark.parametrize(
    "sampling", [Sampling(1e-4), Sampling(1e-310), Sampling(2.0, top_p=1e-9)], ids=str
)
def test_a_low_temperature_and_a_low_top_p_approach_greedy(sampling):
    for seed in range(20):
        logits = random_logits(seed)
        assert Sampler(sampling).choose(logits) == logits.argmax()


def test_the_same_seed_and_logits_give_the_same_tokens_and_another_seed_others():
    every_logits = [random_logits(seed, spread=1.0) for seed in range(30)]

    def drawn(seed):
        sampler = Sampler(Sampling(1.0, top_p=0.95, seed=seed))
        return [sampler.choose(logits) for logits in every_logits]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_tokens_are_drawn_as_often_as_their_probabilities_say():
    logits = np.log(np.array([0.5, 0.05, 0.3, 0.15], np.float32))
    sampler = Sampler(Sampling(1.0, top_p=0.9, seed=1))
    num_drawn = 20_000
    counts = Counter(sampler.choose(logits) for _ in range(num_drawn))
    assert set(counts) == {0, 2, 3}  # the last 0.05 is beyond the 0.9
    for token_id, probability in ((0, 0.5), (2, 0.3), (3, 0.15)):
        share = counts[token_id] / num_drawn
        # five standard errors of the share; a wrong order of the tokens is off by 0.1 and more
        assert abs(share - probability / 0.95) < 0.018


def test_tokens_of_one_probability_are_all_drawn():
    sampler = Sampler(Sampling(1.0))
    assert {sampler.choose(np.zeros(3, np.float32)) for _ in range(100)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, r"temperature=-0.1, wanted 0 \(greedy\) or more"),
        ({"temperature": float("nan")}, "temperature=nan, wanted"),
        ({"temperature": float("inf")}, "temperature=inf, wanted"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0.0, wanted a probability above 0"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p=1.1, wanted"),
        ({"temperature": 1.0, "seed": -1}, "seed=-1, wanted 0 or more"),
        ({"top_p": 0.9}, r"top_p=0.9 and seed=0 have no effect with temperature=0"),
        ({"seed": 5}, "seed=5 have no effect with temperature=0"),
    ],
)
def test_a_wrong_or_contradicting_setting_is_an_error(settings, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**settings)
