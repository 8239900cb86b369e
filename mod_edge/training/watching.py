"""A lesson beside the words: where every object of a made-up scene is, and how it moves.

A motion is told in one word at one instant, and to find it a decoder has to compare places between
frames, for which no word rewards half of the way. So a linear head, thrown away afterwards, asks at
every frame's last token for place, motion and growth of each object by its colour: what the head
can read, the words can be taken from. The scenes are those that the data set was drawn from.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, smooth_l1_loss

from mod_edge.training.batches import Batch
from mod_edge.training.clips import Clip
from mod_edge.training.scene import COLOURS, Look
from mod_edge.training.scenes import scenes_of_clips

# Of place, motion since the frame before, and growth, in shares of the picture. Few objects move at
# any instant: those that do have to weigh as much as all places.
GAINS = np.array([4.0, 4.0, 40.0, 40.0, 100.0], np.float32)
NUM_QUANTITIES = len(GAINS)

FloatArray = npt.NDArray[np.float32]


class Watching(nn.Module):
    """The head, and what it should say at each frame of the data set."""

    answers: Tensor

    def __init__(self, answers: FloatArray, hidden_size: int) -> None:
        """A head that says 0 everywhere.

        Args:
            answers: see `answers_of_clips`.
            hidden_size: D.
        """
        super().__init__()
        self.register_buffer("answers", torch.from_numpy(answers), persistent=False)
        self.head = nn.Linear(hidden_size, answers.shape[1])
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Mean over what is known of the batch's frames; `hidden` is (B, T, D)."""
        states = hidden.flatten(0, 1).index_select(0, batch.frame_index[:, -1])
        said = self.head(rms_norm(states, states.shape[-1:]))
        wanted = self.answers[batch.frames]
        is_known = ~wanted.isnan()
        return smooth_l1_loss(said[is_known], wanted[is_known])


def answers_of_clips(
    folder: Path, clips: Sequence[Clip], num_frames: Sequence[int], fps: float
) -> FloatArray:
    """(frames of all clips, colours * quantities) float32; NaN where there is nothing to say.

    Args:
        folder: of a data set of made-up scenes.
        clips: of it.
        num_frames: of each.
        fps: frames/s.

    Raises:
        DataError: the data set was not made by `mod-edge scenes`.
    """
    answers: list[FloatArray] = []
    for scene, count in zip(scenes_of_clips(folder, clips), num_frames, strict=True):
        before: Sequence[Look | None] = [None] * len(scene.things)
        for frame in range(count):
            looks = scene.looks(frame / fps)
            answers.append(_answers(looks, before))
            before = looks
    return np.stack(answers)


def _answers(looks: Sequence[Look], looks_before: Sequence[Look | None]) -> FloatArray:
    """(colours * quantities,) of objects whose centre is in the picture, in no change of colour."""
    answers = np.full((len(COLOURS), NUM_QUANTITIES), np.nan, np.float32)
    for look, before in zip(looks, looks_before, strict=True):
        if _is_clear(look):
            values = answers[COLOURS.index(look.next_colour)]
            values[:2] = look.x - 0.5, look.y - 0.5
            if before and _is_clear(before) and look.next_colour == before.next_colour:
                values[2:] = look.x - before.x, look.y - before.y, look.radius - before.radius
    return (answers * GAINS).flatten()


def _is_clear(look: Look) -> bool:
    return 0 <= look.x <= 1 and 0 <= look.y <= 1 and look.blend in (0.0, 1.0)
