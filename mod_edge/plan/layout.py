"""The layout of one step: which rows are text, which are frames, which a MoD layer computes.

A step is a tuple of pieces in stream order: a positive number n is a run of n text tokens, `FRAME`
is one whole frame of N vision tokens. Everything that a graph or the reference needs to know about
the step's shape follows from this tuple, so it is computed once per shape and cached.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

FRAME = 0
IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class StepLayout:
    """Row numbers of one step (dims as in `signature`); arrays are read-only.

    Attributes:
        pieces: the pieces in stream order.
        text_index: (X,) int64, rows of text tokens.
        frame_index: (F, N) int64, rows of each frame's tokens.
        row_order: (R,) int64, the permutation that sorts text rows followed by kept rows (as a MoD
            layer's graph concatenates them) by time.
    """

    pieces: tuple[int, ...]
    text_index: IndexArray
    frame_index: IndexArray
    row_order: IndexArray

    @property
    def num_tokens(self) -> int:
        """T: rows of the step in a dense layer."""
        return self.text_index.size + self.frame_index.size

    @property
    def num_rows(self) -> int:
        """R: rows of the step in a MoD layer."""
        return self.row_order.size

    @property
    def num_frames(self) -> int:
        """F."""
        return len(self.frame_index)

    @property
    def last_frame_rows(self) -> IndexArray:
        """(F,) rows of each frame's last token, where speak or silent is decided."""
        return self.frame_index[:, -1]


@lru_cache(maxsize=512)
def step_layout(pieces: tuple[int, ...], frame_num_tokens: int, num_kept: int) -> StepLayout:
    """The layout of a step made of `pieces`.

    Args:
        pieces: text run lengths (>= 1) and `FRAME` marks, in stream order; at least one text token,
            which every step has, because an interval token precedes each frame.
        frame_num_tokens: N.
        num_kept: K, 0..N; 0 in the baselines.
    """
    assert all(piece >= 0 for piece in pieces), pieces
    assert sum(pieces) >= 1, "a step holds at least one text token"
    text_rows: list[int] = []
    frames: list[range] = []
    # (is kept, place among its kind) for every row in time order; text rows come first in the
    # concatenation, so a kept row's place there is known once all text rows are counted
    order: list[tuple[bool, int]] = []
    row = 0
    for piece in pieces:
        if piece == FRAME:
            first_kept = len(frames) * num_kept
            order += [(True, first_kept + kept) for kept in range(num_kept)]
            frames.append(range(row, row + frame_num_tokens))
            row += frame_num_tokens
        else:
            order += [(False, len(text_rows) + text) for text in range(piece)]
            text_rows += range(row, row + piece)
            row += piece
    num_text = len(text_rows)
    return StepLayout(
        pieces=pieces,
        text_index=_frozen(text_rows),
        frame_index=_frozen([list(frame) for frame in frames]).reshape(-1, frame_num_tokens),
        row_order=_frozen([num_text * is_kept + place for is_kept, place in order]),
    )


def _frozen(values: list[int] | list[list[int]]) -> IndexArray:
    array = np.array(values, dtype=np.int64)
    array.flags.writeable = False
    return array
