"""The connector between vision tower and decoder: from a file, or a stand-in without one.

The connector is the one part that nobody publishes alone: it is trained for one tower and one
decoder. A stand-in makes a checkpoint complete, so that text, graphs and speed can be tried; what
the model says about pictures is noise.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mod_edge.errors import CheckpointError, joined_faults
from mod_edge.model.checkpoint_folder import NUM_FAULTS_SHOWN
from mod_edge.model.presets import seeded_generator
from mod_edge.model.weight_files import StoredTensor, WeightFiles

STEMS = ("0.weight", "0.bias", "2.weight", "2.bias")
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


def connector_names(path: Path, weights: WeightFiles) -> dict[str, str]:
    """The name in the file at `path`, opened as `weights`, of each of our connector's tensors.

    Raises:
        CheckpointError: it has other tensors.
    """
    found = weights.tensors.keys()
    for prefix in PREFIXES:
        if found == {prefix + stem for stem in STEMS}:
            return {PREFIX + stem: prefix + stem for stem in STEMS}
    shown = joined_faults(sorted(map(repr, found)), NUM_FAULTS_SHOWN)
    raise CheckpointError(
        f"{path} is not a connector: it has the tensors {shown}, wanted {', '.join(STEMS)}, each "
        f"with the prefix {PREFIX!r} or none"
    )


def check_connector(
    path: Path, stored: Mapping[str, StoredTensor], vision_size: int, hidden_size: int
) -> None:
    """Check that a connector fits a vision tower and a decoder.

    Args:
        path: of the file or the adapter that has it.
        stored: its tensors by our names.
        vision_size: width of the vision tower.
        hidden_size: width of the decoder.

    Raises:
        CheckpointError: it does not; says both widths.
    """
    shapes = connector_shapes(vision_size, hidden_size)
    if missing := shapes.keys() - stored.keys():
        raise CheckpointError(
            f"the connector of {path} is incomplete: no {', '.join(sorted(missing))}"
        )
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
            f"{name!r} is {stored[name]}, wanted {list(shape)}"
            for name, shape in shapes.items()
            if stored[name].shape != shape
        ]
    if faults:
        raise CheckpointError(
            f"the connector of {path} does not fit: {'; '.join(faults)}; give the connector that "
            "was trained for these two models"
        )


def stand_in_connector(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A connector's tensor where there is no trained one; the same in every import.

    Biases are 0. The first layer keeps the scale of its input and the second gives outputs about as
    small as token embeddings, so that the decoder's numbers stay in their range.
    """
    if name.endswith(".bias"):
        return torch.zeros(shape, dtype=dtype)
    deviation = (1.0 if ".0." in name else STAND_IN_DEVIATION) / math.sqrt(shape[1])
    noise = torch.randn(shape, generator=seeded_generator(STAND_IN_SEED, name))
    return (deviation * noise).to(dtype)
