"""Weights of LayerExperts: from a file in either published spelling, or initial ones.

A router is one linear, D -> 1. VideoLLM-MoD calls it `model.layers.N.router.weight` and `.bias`,
p-MoD `model.layers.N.router.router.*` (its bias is optional); peft adds its own prefixes.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mod_edge.errors import CheckpointError, joined_faults
from mod_edge.model.checkpoint_folder import NUM_FAULTS_SHOWN
from mod_edge.model.importing.peft_names import unwrapped_names
from mod_edge.model.importing.single_file import open_weight_file
from mod_edge.model.presets import seeded_generator
from mod_edge.model.weight_files import WeightFiles

ROUTER = re.compile(r"(?:model\.)?layers\.(\d+)\.router(?:\.router)?\.(weight|bias)")
OUR_ROUTER = "model.layers.{}.router.{}"
INITIAL_BIAS = 60.0
INITIAL_DEVIATION = 0.5  # of a logit, for hidden states with a root mean square of 1
INITIAL_SEED = 0


def router_name(their_name: str) -> str | None:
    """Our name of a router's tensor in any spelling; None for other tensors."""
    for name in unwrapped_names(their_name):
        if match := ROUTER.fullmatch(name):
            return OUR_ROUTER.format(*match.groups())
    return None


class Routers:
    """The checked routers of a model's MoD layers; each tensor is read when it is requested."""

    def __init__(
        self,
        weights: WeightFiles,
        names: Mapping[str, str],
        layers: Sequence[int],
        hidden_size: int,
        *,
        other_faults: Sequence[str] = (),
    ) -> None:
        """Check that the routers in a file are those of `layers`.

        Args:
            weights: the opened file.
            names: of the routers' tensors in the file, by our names.
            layers: indices of the model's MoD layers; empty in a model without routers.
            hidden_size: D.
            other_faults: of the file, for the same message.

        Raises:
            CheckpointError: missing, misshapen or other routers, or weights that are not numbers;
                all at once.
        """
        self._weights, self._names = weights, dict(names)
        (path,) = weights.files
        if faults := [*other_faults, *self._faults(layers, hidden_size)]:
            raise CheckpointError(
                f"{path}: its routers do not fit the model: "
                f"{joined_faults(faults, NUM_FAULTS_SHOWN)}; choose the MoD layers that it was "
                "trained for, or give other routers"
            )
        weights.require_finite(self._names.values())

    def read(self, name: str) -> Tensor:
        """The tensor that we call `name`, in the file's dtype; 0 for a bias that the file omits."""
        if name not in self._names:
            assert name.endswith(".bias")
            return torch.zeros(1)
        return self._weights.read(self._names[name])

    def _faults(self, layers: Sequence[int], hidden_size: int) -> list[str]:
        found = sorted({_layer_of(name) for name in self._names})
        has_biases = any(name.endswith(".bias") for name in self._names)
        kinds = {"weight": (1, hidden_size), **({"bias": (1,)} if has_biases else {})}
        faults = []
        if found != sorted(layers):
            ours, theirs = (", ".join(map(str, each)) or "(none)" for each in (layers, found))
            faults.append(f"it has those of layers {theirs}, the MoD layers are {ours}")
        for layer in found:
            for kind, shape in kinds.items():
                name = OUR_ROUTER.format(layer, kind)
                if name not in self._names:
                    faults.append(f"no {name!r}")
                elif (stored := self._weights.tensors[self._names[name]]).shape != shape:
                    faults.append(f"{self._names[name]!r} is {stored}, wanted {list(shape)}")
        return faults


class RouterFile(Routers):
    """A safetensors file with the routers of a model's MoD layers and nothing else."""

    def __init__(self, path: Path, layers: Sequence[int], hidden_size: int) -> None:
        """Open and check the file at `path`; `layers` and `hidden_size` as for `Routers`.

        Raises:
            CheckpointError: the file cannot be read, has other tensors or other routers, or weights
                that are not numbers.
        """
        weights = open_weight_file(path)
        names: dict[str, str] = {}
        faults = []
        for their_name in weights.tensors:
            name = router_name(their_name)
            if name is None:
                faults.append(f"{their_name!r} is not a router's tensor")
            elif name in names:
                faults.append(f"{their_name!r} and {names[name]!r} are the same router's")
            else:
                names[name] = their_name
        super().__init__(weights, names, layers, hidden_size, other_faults=faults)


def initial_router(name: str, hidden_size: int, dtype: torch.dtype) -> Tensor:
    """A tensor of a LayerExpert that has learned nothing and passes its kept tokens unscaled.

    It ranks a frame's tokens by their projection on a random direction, which follows from the
    layer's name alone. A zero weight would rank nothing: all tokens would tie, and backends order
    ties differently.

    A logit is 60 + 0.5 * r * n: r is the root mean square of the token's hidden state, n its
    projection on the direction, about normal. From 18 on the router weight is 1 in float32: at
    r = 30 for every n above -2.8, and the kept tokens have the largest n. Measured on SmolLM2-135M
    with 20 directions, layers 1 to 29 and 20 frames of random tokens or of words in their place (r
    is 0.8 to 35): the smallest logit of a kept token is 28.9; the logits of a frame deviate by 0.5
    to 8; the last kept and first dropped token are a tie (`parity.TIED_LOGITS`) in 0.1 % of frames.
    Their largest channel is 654. The 24,109 that SmolLM2 has in one channel are in the first token
    of the prompt, which no router sees.

    Args:
        name: ours, such as "model.layers.1.router.weight".
        hidden_size: D.
        dtype: of the result.

    Returns:
        (1, D) weight or (1,) bias.
    """
    if name.endswith(".bias"):
        return torch.full((1,), INITIAL_BIAS, dtype=dtype)
    noise = torch.randn(1, hidden_size, generator=seeded_generator(INITIAL_SEED, name))
    return (noise * (INITIAL_DEVIATION / hidden_size**0.5)).to(dtype)


def _layer_of(name: str) -> int:
    """The layer of a router's tensor by our name."""
    match = ROUTER.fullmatch(name)
    assert match is not None, name
    return int(match[1])
