"""The connector between vision tower and decoder: from a file, or a stand-in without one.

The connector is the one part that nobody publishes alone: it is trained for one tower and one
decoder. A stand-in makes a checkpoint complete, so that text, graphs and speed can be tried; what
the model says about pictures is noise.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from mod_edge.errors import CheckpointError, joined_faults
from mod_edge.model.checkpoint_folder import NUM_FAULTS_SHOWN
from mod_edge.model.importing.single_file import open_weight_file
from mod_edge.model.presets import seeded_generator
from mod_edge.model.weight_files import WeightFiles

PREFIX = "connector."
# Without a prefix: the keys of a saved `torch.nn.Sequential`.
PREFIXES = (PREFIX, "", "model.connector.", "base_model.model.connector.")
STAND_IN_SEED = 0
STAND_IN_DEVIATION = 0.02  # of the output: that of the token embeddings of most decoders


def connector_shapes(vision_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of the connector's tensors: two linear layers around a GELU."""
    return {
        "connector.0.weight": (hidden_size, vision_size),
        "connector.0.bias": (hidden_size,),
        "connector.2.weight": (hidden_size, hidden_size),
        "connector.2.bias": (hidden_size,),
    }


class ConnectorFile:
    """A checked safetensors file of a connector.

    Attributes:
        weights: its tensors.
        names: the name in the file of each of our tensors.
    """

    def __init__(self, path: Path, vision_size: int, hidden_size: int) -> None:
        """Open and check the file at `path`.

        Args:
            path: a safetensors file with `connector.0.weight`, `connector.0.bias`,
                `connector.2.weight` and `connector.2.bias`, or these without the prefix.
            vision_size: width of the vision tower.
            hidden_size: width of the decoder.

        Raises:
            CheckpointError: not a safetensors file, or a connector for other widths.
        """
        self.weights = open_weight_file(path)
        shapes = connector_shapes(vision_size, hidden_size)
        self.names = _names(path, self.weights, [name.removeprefix(PREFIX) for name in shapes])
        _check_widths(path, self, shapes, vision_size, hidden_size)


def stand_in_connector(name: str, shape: tuple[int, ...]) -> Tensor:
    """A connector's float32 tensor where there is no trained one; the same in every import.

    Biases are 0. The first layer keeps the scale of its input and the second gives outputs about as
    small as token embeddings, so that the decoder's numbers stay in their range.
    """
    if name.endswith(".bias"):
        return torch.zeros(shape)
    deviation = (1.0 if ".0." in name else STAND_IN_DEVIATION) / math.sqrt(shape[1])
    return deviation * torch.randn(shape, generator=seeded_generator(STAND_IN_SEED, name))


def _names(path: Path, weights: WeightFiles, stems: list[str]) -> dict[str, str]:
    found = weights.tensors.keys()
    for prefix in PREFIXES:
        if found == {prefix + stem for stem in stems}:
            return {PREFIX + stem: prefix + stem for stem in stems}
    shown = joined_faults(sorted(map(repr, found)), NUM_FAULTS_SHOWN)
    raise CheckpointError(
        f"{path} is not a connector: it has the tensors {shown}, wanted {', '.join(stems)}, each "
        f"with the prefix {PREFIX!r} or none"
    )


def _check_widths(
    path: Path,
    connector: ConnectorFile,
    shapes: dict[str, tuple[int, ...]],
    vision_size: int,
    hidden_size: int,
) -> None:
    stored = {name: connector.weights.tensors[theirs] for name, theirs in connector.names.items()}
    first, last = stored["connector.0.weight"].shape, stored["connector.2.weight"].shape
    faults = []
    if len(first) == 2 and first[1] != vision_size:
        faults.append(
            f"it takes features of width {first[1]}, the vision tower gives {vision_size}"
        )
    if len(last) == 2 and last[0] != hidden_size:
        faults.append(f"it gives embeddings of width {last[0]}, the decoder takes {hidden_size}")
    if not faults:
        faults = [
            f"{connector.names[name]!r} is {each}, wanted {list(shapes[name])}"
            for name, each in stored.items()
            if each.shape != shapes[name]
        ]
    if faults:
        raise CheckpointError(
            f"{path} does not fit: {'; '.join(faults)}; give the connector that was trained "
            "for these two models"
        )
