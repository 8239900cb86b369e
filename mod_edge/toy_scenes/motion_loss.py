"""The auxiliary loss "motion": look one frame back, and see what has moved since then.

A caption names a motion in one word at one instant. To predict it a decoder has to find the frame
before, compare places with it, and carry the difference to the reply; the LM loss rewards none of
the three alone. So this loss trains the first layer in two of them at every frame's CLS token: one
query head attends to the CLS token one frame back, and the state after the layer holds place,
motion and growth of each object, by its colour. The targets come from the scenes that the data set
was rendered from.

The targets are read along fixed directions: a trained head would find motions in a difference too
small for the words to use. Errors are squared, because few objects move at any instant: those that
do have to weigh as much as all places.
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

# For place, motion since the frame before, and growth, as shares of the picture: scaled, each has a
# deviation of about 1 over all frames.
GAINS = np.array([4.0, 4.0, 40.0, 40.0, 100.0], np.float32)
NUM_QUANTITIES = len(GAINS)
LAYER, HEAD = 0, 0  # these look back; query head 0 uses key head 0

FloatArray = npt.NDArray[np.float32]


class MotionLoss:
    """The targets of each frame of the data set, and the state directions that hold them."""

    def __init__(self, targets: FloatArray, config: ModelConfig, device: torch.device) -> None:
        """The loss for a model with this config, on this device; see `targets_of_scenes`.

        Raises:
            DataError: frames have no CLS token, the first layer is a MoD layer, or the hidden size
                is smaller than the number of targets.
        """
        hidden_size, num_targets = config.text_config.hidden_size, targets.shape[1]
        has_room = hidden_size >= num_targets
        if not config.frame_token_cls or LAYER in config.mod_layers or not has_room:
            raise DataError(
                f'auxiliary_loss = "motion" needs a model with frame_token_cls, a dense layer '
                f"{LAYER} and hidden_size {num_targets} or more; train this one without it"
            )
        self._targets = torch.from_numpy(targets).to(device)
        drawn = torch.randn(hidden_size, num_targets, generator=torch.Generator().manual_seed(0))
        self._directions = torch.linalg.qr(drawn).Q.to(device)  # orthonormal

    def loss(
        self, decoder: BatchedDecoder, hidden_states: Sequence[Tensor], batch: Batch
    ) -> Tensor:
        """The mean error over the batch's known targets plus the mean look-back loss.

        A part without targets in the batch is 0.
        """
        rows = batch.frame_index[:, 0]
        states = hidden_states[LAYER + 1].flatten(0, 1).index_select(0, rows)
        said = rms_norm(states, states.shape[-1:]) @ self._directions
        wanted = self._targets[batch.frames]
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
    """The loss of one training run; see `AuxiliaryLossMaker`.

    Raises:
        DataError: the data set was not made by `mod-edge scenes`; or see `MotionLoss`.
    """
    fps = config.stream_config.frame_fps
    targets = targets_of_scenes(scenes_of_clips(data, clips), num_frames, fps)
    return MotionLoss(targets, config, device)


def _look_back_loss(scores: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of each CLS token's attention to the CLS token one frame back, if any."""
    rows, length = batch.frame_index[:, 0], batch.num_positions
    streams, places = rows // length, rows % length
    is_next = (streams[1:] == streams[:-1]) & (batch.frames[1:] == batch.frames[:-1] + 1)
    here, before = places[1:][is_next], places[:-1][is_next]
    seen = scores.flatten(0, 1).index_select(0, rows[1:][is_next]).float()
    is_ahead = torch.arange(length, device=rows.device) > here[:, None]
    losses = cross_entropy(seen.masked_fill(is_ahead, -torch.inf), before, reduction="sum")
    return losses / max(1, len(before))


def targets_of_scenes(scenes: Iterable[Scene], num_frames: Sequence[int], fps: float) -> FloatArray:
    """(frames of all scenes, colours * quantities) float32; NaN for no target."""
    targets: list[FloatArray] = []
    for scene, count in zip(scenes, num_frames, strict=True):
        before: Sequence[Look | None] = [None] * len(scene.things)
        for frame in range(count):
            looks = scene.looks(frame / fps)
            targets.append(_targets(looks, before))
            before = looks
    return np.stack(targets)


def _targets(looks: Sequence[Look], looks_before: Sequence[Look | None]) -> FloatArray:
    """(colours * quantities,) of objects with their centre in the picture and a steady colour."""
    targets = np.full((len(COLOURS), NUM_QUANTITIES), np.nan, np.float32)
    for look, before in zip(looks, looks_before, strict=True):
        if _is_clear(look):
            values = targets[COLOURS.index(look.next_colour)]
            values[:2] = look.x - 0.5, look.y - 0.5
            if before and _is_clear(before) and look.next_colour == before.next_colour:
                values[2:] = look.x - before.x, look.y - before.y, look.radius - before.radius
    return (targets * GAINS).flatten()


def _is_clear(look: Look) -> bool:
    return 0 <= look.x <= 1 and 0 <= look.y <= 1 and look.blend in (0.0, 1.0)
