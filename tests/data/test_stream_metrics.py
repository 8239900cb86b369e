"""The formulas compared with values computed by hand, the matching with exhaustive search."""

import math
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mod_edge.data.stream_metrics import (
    TurnOutcome,
    frame_diff,
    is_same,
    match_in_order,
    mean,
    mean_of_means,
    num_late_frames,
    num_leading,
    ratio,
    speaks,
    token_losses,
    words_of,
)

SILENT, SPEAK, OTHER = 1, 2, 0
QUIET, LOUD = False, True


def outcome(num_decisions, difference, num_right, num_learned):
    return TurnOutcome(num_decisions, difference, np.full(num_learned, math.log(3)), num_right)


def test_losses_are_the_softmaxs_and_do_not_overflow():
    logits = np.array([[1000.0, 1000.0 + math.log(3)]], np.float32)
    # float32 holds 1001.0986 to 3e-5; 0.25 and 0.75 are the probabilities
    assert token_losses(logits, [0]) == pytest.approx([math.log(4)], abs=1e-4)
    assert token_losses(logits, [1]) == pytest.approx([math.log(4 / 3)], abs=1e-4)


def test_perplexity_is_exp_of_the_mean_loss():
    turn = TurnOutcome(1, 0, np.array([math.log(2), math.log(8)]), 0)
    assert turn.perplexity == pytest.approx(4)
    assert TurnOutcome(1, 0, np.array([1e4]), 0).perplexity == math.inf


def test_correctness_counts_up_to_the_first_mistake():
    assert num_leading([True, True, False, True]) == 2
    assert num_leading([True, True]) == 2
    assert num_leading([]) == 0
    assert outcome(1, 0, num_right=2, num_learned=5).correctness == pytest.approx(0.4)


def test_a_model_speaks_if_silence_is_not_the_likeliest_or_below_the_threshold():
    probabilities = [[0.1, 0.6, 0.3], [0.1, 0.3, 0.6], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]]
    logits = np.log(probabilities).astype(np.float32)
    assert speaks(logits, SILENT, threshold=0).tolist() == [QUIET, LOUD, LOUD, QUIET]
    assert speaks(logits, SILENT, threshold=0.7).tolist() == [LOUD, LOUD, LOUD, QUIET]


@pytest.mark.parametrize(
    ("decisions", "late", "difference"),
    [
        ([QUIET, QUIET, LOUD], [], 0),
        ([LOUD, QUIET, LOUD], [], 2),
        ([QUIET, LOUD, QUIET], [], 1),
        ([QUIET, QUIET, QUIET], [], 0),  # no next turn, or no late frames
        ([QUIET, QUIET, QUIET], [LOUD, QUIET], -1),
        ([QUIET, QUIET, QUIET], [QUIET, LOUD], -2),
        ([QUIET, QUIET, QUIET], [QUIET, QUIET], -2),
    ],
)
def test_frame_diff_counts_early_and_late_frames(decisions, late, difference):
    assert frame_diff(decisions, late, is_asked=False) == difference


@pytest.mark.parametrize(
    ("decisions", "difference"), [([QUIET, QUIET], 0), ([QUIET, LOUD], 1), ([LOUD, QUIET], 2)]
)
def test_silence_before_a_query_is_right(decisions, difference):
    assert frame_diff(decisions, [], is_asked=True) == difference


def test_there_are_as_many_late_frames_as_early_ones():
    assert num_late_frames(num_frames=5, num_next_frames=9) == 4
    assert num_late_frames(num_frames=5, num_next_frames=2) == 2
    assert num_late_frames(num_frames=1, num_next_frames=9) == 0


@pytest.mark.parametrize(
    ("difference", "fluency"),
    [
        (0, (4 + 3) / 10),  # all four decisions and three of six tokens
        (1, (4 - 1) / 10),
        (3, (4 - 3) / 10),
        (-1, (4 - 1) / 10),  # only the decision to speak is wrong, however late
        (-3, (4 - 1) / 10),
    ],
)
def test_fluency_is_the_share_before_the_first_mistake(difference, fluency):
    turn = outcome(4, difference, num_right=3, num_learned=6)
    assert turn.fluency == pytest.approx(fluency)


def test_a_turn_without_decisions_has_no_fluency():
    assert outcome(0, None, num_right=3, num_learned=6).fluency is None


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("The red ball moves left.", True),
        ("the RED ball, it moves to the left", True),
        ("The ball moves left, red.", False),  # out of order
        ("The red balls moves left.", False),  # not a whole word
        ("The red ball moves.", False),
        ("", False),
    ],
)
def test_a_caption_is_right_if_its_keys_are_whole_words_in_order(text, is_right):
    truth = "The red ball moves left."
    assert is_same(text, truth, ("red", "ball", "moves", "left")) is is_right


def test_without_keys_all_words_must_match():
    assert is_same("  yes ", "Yes.", ())
    assert is_same("A man's hat: here", "a man's hat, here.", ())
    assert not is_same("Yes, it is.", "Yes.", ())
    assert not is_same("", "🙂", ())
    assert is_same(" 🙂", "🙂", ())


def test_words_are_found_in_any_script():
    assert words_of("Dogs' 'hat' isn't here_1.") == ["dogs", "hat", "isn't", "here_1"]
    assert is_same("红球停下了。", "", ("红球", "停下"))  # red ball, stops
    assert not is_same("红球停下了。", "", ("蓝球",))  # blue ball
    assert not is_same("वह काला", "वह कीला", ())  # vowel signs differ
    assert is_same("café", "café", ())


def test_a_key_may_have_two_words():
    assert is_same("It hides behind the red box.", "", ("hides behind", "box"))
    assert not is_same("Behind the box it hides.", "", ("hides behind", "box"))


def test_a_time_error_equal_to_the_tolerance_is_within_it():
    assert 2.2 - 1.2 > 1
    assert match_in_order([2.2], [1.2], tolerance_s=1) == [(0, 0)]
    assert match_in_order([2.21], [1.2], tolerance_s=1) == []


moments = st.lists(st.integers(0, 9), max_size=4).map(lambda grid: sorted(x / 2 for x in grid))


def cost_of(pairs, said_s, true_s):
    return (-len(pairs), sum(abs(said_s[i] - true_s[j]) for i, j in pairs))


def all_matchings(said_s, true_s, can_match):
    """Every way to pair them, including crossing pairs."""
    for count in range(min(len(said_s), len(true_s)) + 1):
        for said in combinations(range(len(said_s)), count):
            for true in permutations(range(len(true_s)), count):
                pairs = list(zip(said, true, strict=True))
                if all(abs(said_s[i] - true_s[j]) <= 1 and can_match(i, j) for i, j in pairs):
                    yield pairs


@given(moments, moments)
def test_no_other_matching_of_moments_has_more_or_nearer_pairs(said_s, true_s):
    ours = match_in_order(said_s, true_s, tolerance_s=1)
    theirs = min(
        cost_of(pairs, said_s, true_s)
        for pairs in all_matchings(said_s, true_s, lambda _i, _j: True)
    )
    assert cost_of(ours, said_s, true_s) == pytest.approx(theirs)


@given(moments, moments, st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3))))
def test_no_other_matching_in_order_has_more_or_nearer_right_pairs(said_s, true_s, right):
    def can_match(i, j):
        return (i, j) in right

    ours = match_in_order(said_s, true_s, 1, can_match)
    in_order = [
        pairs
        for pairs in all_matchings(said_s, true_s, can_match)
        if [j for _, j in pairs] == sorted(j for _, j in pairs)
    ]
    assert ours in in_order
    theirs = min(cost_of(pairs, said_s, true_s) for pairs in in_order)
    assert cost_of(ours, said_s, true_s) == pytest.approx(theirs)


def test_a_ratio_or_mean_of_nothing_is_none():
    assert ratio(0, 0) is None
    assert ratio(1, 4) == 0.25
    assert mean([]) is None
    assert mean([1.0, 2.0]) == 1.5


def test_groups_have_equal_weights_and_empty_ones_none():
    assert mean_of_means([[1.0, 3.0, 5.0], [], [9.0]]) == 6.0
    assert mean_of_means([[], []]) is None
