"""A loss beside those of the words, which a recipe asks for by name (`auxiliary_loss`).

The trainer knows no such loss: whoever calls it hands in the ones that there are.
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
    """A loss for one model on one data set."""

    def loss(
        self, decoder: BatchedDecoder, hidden_states: Sequence[Tensor], batch: Batch
    ) -> Tensor:
        """A scalar: the mean over what the batch has to learn.

        Args:
            decoder: that made the states; it gives a layer's queries and keys, too.
            hidden_states: see `BatchedDecoder.hidden_states`.
            batch: whose states they are.
        """


class AuxiliaryLossMaker(Protocol):
    """Makes the loss of one training."""

    def __call__(
        self,
        data: Path,
        clips: Sequence[Clip],
        *,
        num_frames: Sequence[int],
        config: ModelConfig,
        device: torch.device,
    ) -> AuxiliaryLoss:
        """The loss.

        Args:
            data: the data set's folder.
            clips: of its training split.
            num_frames: that each clip's video gave.
            config: of the model.
            device: of the model.

        Raises:
            DataError: this data set or this model cannot have it.
        """
