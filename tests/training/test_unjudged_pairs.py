"""Pairs that the loss hardly judges: which words count for less in the softmax, and where."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from mod_edge.document_parser import parse_toml
from mod_edge.errors import DataError
from mod_edge.model.shipped import FOLDER
from mod_edge.toy_scenes.scene import HELD_OUT
from mod_edge.toy_scenes.small_model import scene_tokenizer
from mod_edge.training.unjudged_pairs import UnjudgedPairs
from tests.training.test_train import RECIPE, SETTINGS, data, no_picture, run  # noqa: F401

CPU = torch.device("cpu")
NARRATORS = FOLDER / "recipe.toml"


@pytest.fixture(scope="module")
def tokenizer():
    return scene_tokenizer()


@pytest.fixture(scope="module")
def ids(tokenizer):
    words = ("red", "green", "star", "ball", "box")
    return {word: tokenizer.encode(f" {word}", add_special_tokens=False).ids[0] for word in words}


def gradient(tokenizer, first_word, label, *, pairs=("red star", "green ball")):
    """Of the loss of one row, by token id; all logits are equal."""
    logits = torch.zeros(1, tokenizer.get_vocab_size(), requires_grad=True)
    unjudged = UnjudgedPairs(pairs, tokenizer, CPU)
    lowered = unjudged.lowered(logits, torch.tensor([first_word]), torch.tensor([label]))
    cross_entropy(lowered, torch.tensor([label])).backward()
    return logits.grad[0]


def test_after_the_first_word_the_second_is_hardly_pushed_down(tokenizer, ids):
    found = gradient(tokenizer, ids["red"], ids["box"])
    assert 0 < found[ids["star"]] < 0.02 * found[ids["ball"]]  # red balls are judged
    assert found[ids["box"]] < 0


def test_after_other_words_it_is(tokenizer, ids):
    found = gradient(tokenizer, ids["green"], ids["box"])
    assert 0 < found[ids["ball"]] < 0.02 * found[ids["star"]]
    found = gradient(tokenizer, -1, ids["box"])
    assert found[ids["ball"]] == found[ids["star"]] > 0


def test_a_first_word_of_several_pairs_lowers_each_second_word(tokenizer, ids):
    found = gradient(tokenizer, ids["red"], ids["box"], pairs=("red star", "red ball"))
    assert found[ids["ball"]] == found[ids["star"]] < 0.02 * found[ids["green"]]


def test_a_pair_that_the_data_has_is_learned(tokenizer, ids):
    assert gradient(tokenizer, ids["red"], ids["star"])[ids["star"]] < -0.9


def test_the_last_first_word_since_the_last_frame_counts(tokenizer, ids):
    other = ids["box"]  # begins no pair
    rows = [ids["red"], other, 0, ids["green"], other, ids["red"], 0, other]
    is_text = [True, True, False, True, True, True, False, True]
    found = UnjudgedPairs(["red star", "green ball"], tokenizer, CPU).first_words(
        torch.tensor([rows]), torch.tensor([is_text])
    )
    red, green = ids["red"], ids["green"]
    assert found.tolist() == [[red, red, -1, green, green, red, -1, -1]]


def test_the_bundled_models_recipe_names_what_is_held_out(tokenizer):
    """In captions and in answers, whose first word has a capital."""
    # not read_recipe: it wants the folder of the pretrained tower, which is not in the repository
    pairs = parse_toml(NARRATORS.read_text(encoding="utf-8"))["train"]["unjudged_pairs"]
    expected = {f"{colour} {shape}" for colour, shape in HELD_OUT}
    expected |= {f"{shape} {colour}" for colour, shape in HELD_OUT}
    expected |= {f"{shape} {colour.capitalize()}" for colour, shape in HELD_OUT}
    assert set(pairs) == expected
    UnjudgedPairs(pairs, tokenizer, CPU)  # each word is one token


def test_pairs_that_are_not_two_known_words_are_refused_by_name(tokenizer):
    pairs = ["red star", "red", "red hippopotamus", "a red star"]
    with pytest.raises(DataError, match="unjudged_pairs: 'red', 'red hippopotamus', 'a red star'"):
        UnjudgedPairs(pairs, tokenizer, CPU)


def test_a_training_names_words_that_its_tokenizer_does_not_know(data, tmp_path):  # noqa: F811
    recipe = replace(RECIPE, train=replace(SETTINGS, unjudged_pairs=("red hippopotamus",)))
    with pytest.raises(DataError, match="'red hippopotamus'"):
        run(data, recipe, tmp_path / "out")
