"""Pairs that the loss does not judge: what is left out of the softmax, and what is not."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from mod_edge.errors import DataError
from mod_edge.toy_scenes.small_model import scene_tokenizer
from mod_edge.training.unjudged_pairs import UnjudgedPairs
from tests.training.test_train import RECIPE, SETTINGS, data, no_picture, run  # noqa: F401

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return scene_tokenizer()


@pytest.fixture(scope="module")
def ids(tokenizer):
    words = ("red", "green", "star", "ball", "box")
    return {word: tokenizer.encode(f" {word}", add_special_tokens=False).ids[0] for word in words}


def gradient(tokenizer, before, label):
    """Of the loss of one row, by token id."""
    logits = torch.zeros(1, tokenizer.get_vocab_size(), requires_grad=True)
    pairs = UnjudgedPairs(["red star", "green ball"], tokenizer, CPU)
    left = pairs.without(logits, torch.tensor([before]), torch.tensor([label]))
    cross_entropy(left, torch.tensor([label])).backward()
    return logits.grad[0]


def test_after_the_first_word_the_second_is_not_pushed_down(tokenizer, ids):
    found = gradient(tokenizer, ids["red"], ids["box"])
    assert found[ids["star"]] == 0
    assert found[ids["ball"]] > 0  # of the other pair: red balls are judged
    assert found[ids["box"]] < 0


def test_after_other_words_it_is(tokenizer, ids):
    found = gradient(tokenizer, ids["green"], ids["box"])
    assert found[ids["star"]] > 0
    assert found[ids["ball"]] == 0


def test_a_pair_that_the_data_has_is_learned(tokenizer, ids):
    assert gradient(tokenizer, ids["red"], ids["star"])[ids["star"]] < 0


def test_pairs_that_are_not_two_known_words_are_refused_by_name(tokenizer):
    pairs = ["red star", "red", "red hippopotamus", "a red star"]
    with pytest.raises(DataError, match="unjudged_pairs: 'red', 'red hippopotamus', 'a red star'"):
        UnjudgedPairs(pairs, tokenizer, CPU)


def test_a_training_names_words_that_its_tokenizer_does_not_know(data, tmp_path):  # noqa: F811
    recipe = replace(RECIPE, train=replace(SETTINGS, unjudged_pairs=("red hippopotamus",)))
    with pytest.raises(DataError, match="'red hippopotamus'"):
        run(data, recipe, tmp_path / "out")
