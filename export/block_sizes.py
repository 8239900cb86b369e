"""Whether the block sizes of a lowering's weights divide a model's weights, before any work."""

import re
from collections.abc import Iterator, Sequence

import torch

from mod_edge.config import ModelConfig
from mod_edge.errors import ExportError
from mod_edge.export.step_io import REFERENCES
from mod_edge.model.quantized import quantized_linears
from mod_edge.plan.graph_kind import GraphKind
from mod_edge.plan.signature import GraphSignature
from mod_edge.plan.targets import Lowering, target_named


def require_whole_blocks(
    config: ModelConfig, lowering: Lowering, signatures: Sequence[GraphSignature]
) -> None:
    """Check that the inputs of every quantized weight are a multiple of its block size.

    Blocks that are partly padding would be allowed by some ops and read wrongly by others.

    Args:
        config: the model's.
        lowering: with the form of the weights of every kind of graph.
        signatures: of the graphs to export.

    Raises:
        ExportError: names every kind of weight that has another number of inputs.
    """
    kinds = dict.fromkeys(signature.kind for signature in signatures)
    faults = dict.fromkeys(
        f"{name} has {num_in} inputs, wanted a multiple of {block}"
        for kind in kinds
        for name, num_in, block in _blocks(config, lowering, kind)
        if num_in % block
    )
    if faults:
        raise ExportError(
            f"weights {lowering.weight_format} of target {lowering.target} do not fit this model: "
            f"{'; '.join(faults)}; export with --weights {' or '.join(_without_blocks(lowering))}"
        )


def _blocks(
    config: ModelConfig, lowering: Lowering, kind: GraphKind
) -> Iterator[tuple[str, int, int]]:
    """Name, number of inputs and block size of the weights of a kind of graph, if it has blocks."""
    form = lowering.weight_form(kind)
    if form is None or form.block is None:
        return
    with torch.device("meta"):
        module = REFERENCES[kind](config)
    prefix = kind.cut_prefix.format(layer="*") if kind.is_layer else ""
    for path, linear in quantized_linears(module).items():
        name = re.sub(r"layers\.\d+", "layers.*", path)  # all layers of vision have equal sizes
        yield f"{prefix}{name}.weight", linear.in_features, form.block


def _without_blocks(lowering: Lowering) -> list[str]:
    """The target's formats that fit every model."""
    return [
        each.name
        for each in target_named(lowering.target).weight_formats
        if all(form is None or form.block is None for form in (each.layers, each.others))
    ]
