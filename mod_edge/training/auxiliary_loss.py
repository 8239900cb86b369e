"""The protocol of an additional training loss, which a recipe selects by name (`auxiliary_loss`).

The trainer defines no such losses itself: the caller passes the available ones to `train`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mod_edge.config import ModelConfig
from mod_edge.data.clips import Clip
from mod_edge.training.batches import Batch
from mod_edge.training.forward import BatchedDecoder


class AuxiliaryLoss(Protocol):
    """An additional loss for one model on one data set."""

    def loss(
        self, decoder: BatchedDecoder, hidden_states: Sequence[Tensor], batch: Batch
    ) -> Tensor:
        """A scalar: the mean over the batch's targets.

        Args:
            decoder: computed the states, and also returns a layer's queries and keys.
            hidden_states: see `BatchedDecoder.hidden_states`.
            batch: the batch that the states belong to.
        """


class AuxiliaryLossMaker(Protocol):
    """Makes the loss of one training run."""

    def __call__(
        self,
        data: Path,
        clips: Sequence[Clip],
        *,
        num_frames: Sequence[int],
        config: ModelConfig,
        device: torch.device,
    ) -> AuxiliaryLoss:
        """The loss for the training split `clips` of the data set `data`.

        `num_frames` are the frames read from each clip's video.

        Raises:
            DataError: the loss does not support this data set or this model.
        """
