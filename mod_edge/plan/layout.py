"""The layout of one step: which rows are text, which are frames, which a MoD layer computes.

A step is a tuple of pieces in stream order: a positive number n is a run of n text tokens, `FRAME`
is one whole frame of N vision tokens. A step has at least one piece and may have no text: frames
follow each other directly if the model has no interval token. Everything that a graph or the
reference needs to know about the step's shape follows from this tuple, so it is computed once per
shape and cached.
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


def frame_pieces(num_frames: int, num_before: int, num_between: int) -> tuple[int, ...]:
    """The pieces of a step of frames, with runs of text before the first and between them.

    Args:
        num_frames: F >= 1.
        num_before: text tokens before the first frame; 0 for none.
        num_between: text tokens between two frames; 0 for none.
    """
    runs = [num_before, *[num_between] * (num_frames - 1)]
    return tuple(piece for run in runs for piece in ((run, FRAME) if run else (FRAME,)))


@lru_cache(maxsize=512)
def step_layout(pieces: tuple[int, ...], frame_num_tokens: int, num_kept: int) -> StepLayout:
    """The layout of a step made of `pieces`.

    Args:
        pieces: text run lengths (>= 1) and `FRAME` marks, in stream order; at least one.
        frame_num_tokens: N.
        num_kept: K, 0..N; 0 in the baselines.
    """
    assert pieces, "a step has at least one token"
    assert all(piece >= 0 for piece in pieces), pieces
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
