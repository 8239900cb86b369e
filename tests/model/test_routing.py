"""Selections with known answers."""

import pytest
import torch

from mod_edge.errors import ShapeError
from mod_edge.model.routing import keep_top_tokens, random_tokens, rows_to_compute, uniform_tokens

pytestmark = pytest.mark.numeric


def test_the_heaviest_tokens_are_kept_as_positions_not_as_ranks():
    router_weights = torch.tensor([[0.1, 0.8, 0.2, 0.7, 0.9, 0.3]])
    assert keep_top_tokens(router_weights, 3).tolist() == [[1, 3, 4]]  # ranks would be 0, 1, 2


def test_kept_tokens_stay_in_temporal_order():
    router_weights = torch.tensor([[5.0, -1.0, 4.0, 3.0, 6.0], [0.0, 1.0, 2.0, 3.0, 4.0]])
    assert keep_top_tokens(router_weights, 4).tolist() == [[0, 2, 3, 4], [1, 2, 3, 4]]


def test_every_frame_keeps_its_own_tokens():
    light = torch.tensor([-9.0, -7.0, -8.0, -6.0])
    assert keep_top_tokens(torch.stack([light + 100, light]), 2).tolist() == [[1, 3], [1, 3]]


def test_equal_weights_still_keep_exactly_k():
    kept = keep_top_tokens(torch.zeros(3, 10), 2)  # "above the second largest" would keep none
    assert kept.shape == (3, 2)
    assert (kept[:, 0] < kept[:, 1]).all()


def test_no_frames_keep_nothing():
    kept = keep_top_tokens(torch.zeros(0, 10), 2)
    assert kept.shape == (0, 2)
    assert kept.dtype == torch.int64


@pytest.mark.parametrize(
    ("num_tokens", "num_kept", "kept"),
    [
        (10, 2, (0, 5)),
        (10, 1, (0,)),
        (10, 3, (0, 3, 6)),
        (7, 3, (0, 2, 4)),
        (10, 6, (0, 1, 2, 3, 4, 5)),  # n//k is 1: the first six, as published
        (4, 4, (0, 1, 2, 3)),
    ],
)
def test_uniform_selection_takes_every_nth_token(num_tokens, num_kept, kept):
    assert uniform_tokens(num_tokens, num_kept) == kept


def test_random_tokens_are_drawn_for_every_frame_and_never_twice():
    torch.manual_seed(0)
    kept = random_tokens(3000, 10, 3)
    assert kept.shape == (3000, 3)
    assert (kept[:, 1:] > kept[:, :-1]).all()  # strictly ascending, so none occurs twice
    assert len({tuple(frame) for frame in kept.tolist()}) == 120  # all threes of ten
    shares = kept.flatten().bincount(minlength=10) / 3000
    assert (shares - 0.3).abs().max() < 0.04  # measured 0.011 to 0.019 over six seeds


def test_random_tokens_repeat_with_torchs_seed():
    def draw():
        torch.manual_seed(5)
        return random_tokens(20, 10, 2)

    assert torch.equal(draw(), draw())
    assert random_tokens(0, 10, 2).shape == (0, 2)


@pytest.mark.parametrize("num_kept", [0, 5])
def test_an_impossible_number_of_kept_tokens_is_refused(num_kept):
    fault = rf"num_kept={num_kept} is outside 1\.\.4.*keep_ratio"
    with pytest.raises(ShapeError, match=fault):
        keep_top_tokens(torch.zeros(2, 4), num_kept)
    with pytest.raises(ShapeError, match=fault):
        uniform_tokens(4, num_kept)
    with pytest.raises(ShapeError, match=fault):
        random_tokens(2, 4, num_kept)


def test_text_and_kept_rows_are_computed_in_time_order():
    # Text at 0, 1, 6, 11; one frame of four at 2..5 and another at 7..10.
    frame_index = torch.tensor([[2, 3, 4, 5], [7, 8, 9, 10]])
    kept = torch.tensor([[1, 3], [0, 3]])
    assert rows_to_compute(12, frame_index, kept).tolist() == [0, 1, 3, 5, 6, 7, 10, 11]


def test_a_step_of_text_alone_computes_every_row():
    no_frames = torch.zeros(0, 4, dtype=torch.int64)
    no_kept = torch.zeros(0, 2, dtype=torch.int64)
    assert rows_to_compute(3, no_frames, no_kept).tolist() == [0, 1, 2]
