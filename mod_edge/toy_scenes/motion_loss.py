"""The auxiliary loss "motion": to look one frame back, and to see what has moved since.

A motion is told in one word at one instant, and to find it a decoder has to do three things, of
which no word rewards one alone: find the frame before, compare places with it, carry the difference
to the reply. So the first layer is asked for two of them at every frame's CLS token: one query head
for the CLS token a frame back, and the state behind it for place, motion and growth of each object
by its colour. The scenes are those that the data set was drawn from.

What it asks for lies in directions that never change: a head that could learn would read motions
off a difference too faint for the words. And errors count by their squares, because few objects
move at any instant: those that do have to weigh as much as all places.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss, rms_norm

from mod_edge.config import ModelConfig
from mod_edge.data.clips import Clip
from mod_edge.errors import DataError
from mod_edge.toy_scenes.scene import COLOURS, Look, Scene
from mod_edge.toy_scenes.scenes import scenes_of_clips
from mod_edge.training.batches import Batch
from mod_edge.training.forward import BatchedDecoder

# Of place, motion since the frame before, and growth, in shares of the picture: each varies by
# about 1 over all frames.
GAINS = np.array([4.0, 4.0, 40.0, 40.0, 100.0], np.float32)
NUM_QUANTITIES = len(GAINS)
LAYER, HEAD = 0, 0  # that look back; the first query head is of the first key head

FloatArray = npt.NDArray[np.float32]


class MotionLoss:
    """What is asked at each frame of the data set, and in which directions of the states."""

    def __init__(self, answers: FloatArray, config: ModelConfig, device: torch.device) -> None:
        """The loss for one model.

        Args:
            answers: see `answers_of_scenes`.
            config: of the model that learns.
            device: of the model.

        Raises:
            DataError: frames have no CLS token, the first layer does not compute all of them, or
                its states have no room for all answers.
        """
        hidden_size, num_answers = config.text_config.hidden_size, answers.shape[1]
        has_room = hidden_size >= num_answers
        if not config.frame_token_cls or LAYER in config.mod_layers or not has_room:
            raise DataError(
                'auxiliary_loss = "motion" needs a model with frame_token_cls, whose CLS token '
                f"tells where things are, and a dense layer {LAYER}, to compare it with the one a "
                f"frame back, of hidden_size {num_answers} or more; train others without it"
            )
        self._answers = torch.from_numpy(answers).to(device)
        drawn = torch.randn(hidden_size, num_answers, generator=torch.Generator().manual_seed(0))
        self._directions = torch.linalg.qr(drawn).Q.to(device)  # at right angles, of length 1

    def loss(
        self, decoder: BatchedDecoder, hidden_states: Sequence[Tensor], batch: Batch
    ) -> Tensor:
        """The mean over what is known of the batch's frames, and that over frames to look back.

        0 for a part of which the batch has nothing.
        """
        rows = batch.frame_index[:, 0]
        states = hidden_states[LAYER + 1].flatten(0, 1).index_select(0, rows)
        said = rms_norm(states, states.shape[-1:]) @ self._directions
        wanted = self._answers[batch.frames]
        is_known = ~wanted.isnan()
        query, key = decoder.query_and_key(hidden_states[LAYER], LAYER)
        scaled = query[:, :, HEAD] * query.shape[-1] ** -0.5
        scores = scaled @ key[:, :, HEAD].transpose(1, 2)  # (B, T, T), before mask and softmax
        errors = mse_loss(said[is_known], wanted[is_known], reduction="sum")
        return errors / max(1, int(is_known.sum())) + _look_back_loss(scores, batch)


def motion_loss(
    data: Path,
    clips: Sequence[Clip],
    *,
    num_frames: Sequence[int],
    config: ModelConfig,
    device: torch.device,
) -> MotionLoss:
    """The loss of one training, see `AuxiliaryLossMaker`.

    Raises:
        DataError: the data set was not made by `mod-edge scenes`, or as `MotionLoss`.
    """
    fps = config.stream_config.frame_fps
    answers = answers_of_scenes(scenes_of_clips(data, clips), num_frames, fps)
    return MotionLoss(answers, config, device)


def _look_back_loss(scores: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of each CLS token's attention to the one a frame back, where there is one."""
    rows, length = batch.frame_index[:, 0], batch.num_positions
    streams, places = rows // length, rows % length
    is_next = (streams[1:] == streams[:-1]) & (batch.frames[1:] == batch.frames[:-1] + 1)
    here, before = places[1:][is_next], places[:-1][is_next]
    seen = scores.flatten(0, 1).index_select(0, rows[1:][is_next]).float()
    is_ahead = torch.arange(length, device=rows.device) > here[:, None]
    losses = cross_entropy(seen.masked_fill(is_ahead, -torch.inf), before, reduction="sum")
    return losses / max(1, len(before))


def answers_of_scenes(scenes: Iterable[Scene], num_frames: Sequence[int], fps: float) -> FloatArray:
    """(frames of all scenes, colours * quantities) float32; NaN where there is nothing to say.

    Args:
        scenes: in the clips' order.
        num_frames: of each.
        fps: frames/s.
    """
    answers: list[FloatArray] = []
    for scene, count in zip(scenes, num_frames, strict=True):
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
