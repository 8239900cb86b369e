"""Row numbers of a step, checked by hand and by properties."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mod_edge.plan.layout import FRAME, frame_pieces, step_layout


def test_the_rows_of_a_small_step():
    layout = step_layout((2, FRAME, 1, FRAME), frame_num_tokens=3, num_kept=2)
    # rows: text 0 1, frame 2 3 4, text 5, frame 6 7 8
    assert layout.text_index.tolist() == [0, 1, 5]
    assert layout.frame_index.tolist() == [[2, 3, 4], [6, 7, 8]]
    # concatenated: text at 0 1 2, kept rows of the frames at 3 4 and 5 6
    assert layout.row_order.tolist() == [0, 1, 3, 4, 2, 5, 6]
    assert (layout.num_tokens, layout.num_rows, layout.num_frames) == (9, 7, 2)
    assert layout.last_frame_rows.tolist() == [4, 8]


def test_a_step_of_text_alone_has_no_frames_of_the_right_width():
    layout = step_layout((3,), frame_num_tokens=10, num_kept=2)
    assert layout.frame_index.shape == (0, 10)
    assert layout.last_frame_rows.shape == (0,)
    assert layout.text_index.tolist() == layout.row_order.tolist() == [0, 1, 2]


def test_frames_without_an_interval_follow_each_other_and_may_be_a_step_without_text():
    layout = step_layout((FRAME, FRAME), frame_num_tokens=1, num_kept=1)
    assert layout.text_index.shape == (0,)
    assert layout.frame_index.tolist() == [[0], [1]]
    assert layout.row_order.tolist() == layout.last_frame_rows.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("num_before", "num_between", "pieces"),
    [
        (2, 1, (2, FRAME, 1, FRAME, 1, FRAME)),
        (2, 0, (2, FRAME, FRAME, FRAME)),  # a run of no text must not become a frame
        (0, 0, (FRAME, FRAME, FRAME)),
    ],
)
def test_the_pieces_of_a_step_of_frames(num_before, num_between, pieces):
    assert frame_pieces(3, num_before, num_between) == pieces


def test_every_index_is_int64_and_read_only():
    layout = step_layout((2, FRAME), 10, 2)
    for array in (layout.text_index, layout.frame_index, layout.row_order):
        assert array.dtype == np.int64
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_the_layout_of_a_shape_is_cached():
    assert step_layout((2, FRAME), 10, 2) is step_layout((2, FRAME), 10, 2)
    assert step_layout((2, FRAME), 10, 2) is not step_layout((2, FRAME), 10, 3)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=9),
    st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))),
    st.randoms(use_true_random=False),
)
def test_the_row_order_sorts_text_and_kept_rows_by_time(pieces, sizes, random):
    frame_num_tokens, num_kept = sizes
    layout = step_layout(tuple(pieces), frame_num_tokens, num_kept)
    # any selection of a router, ascending within each frame
    kept = [sorted(random.sample(frame, num_kept)) for frame in layout.frame_index.tolist()]
    concatenated = np.array([*layout.text_index.tolist(), *chain(*kept)], np.int64)
    in_time_order = concatenated[layout.row_order]
    assert (np.diff(in_time_order) > 0).all()
    assert sorted(layout.row_order.tolist()) == list(range(layout.num_rows))
    every_row = sorted([*layout.text_index.tolist(), *layout.frame_index.flatten().tolist()])
    assert every_row == list(range(layout.num_tokens))
    assert layout.num_frames == pieces.count(FRAME)
