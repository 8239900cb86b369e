"""Whether the weight forms of a lowering fit the sizes of a model's weights, before any work."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from mod_edge.config import ModelConfig
from mod_edge.errors import ExportError
from mod_edge.export.step_io import REFERENCES
from mod_edge.model.quantized import U8_STEPS, quantized_linears
from mod_edge.plan.graph_kind import GraphKind
from mod_edge.plan.signature import GraphSignature
from mod_edge.plan.targets import Lowering, target_named
from mod_edge.plan.weight_forms import U8_ROWS, WeightForm

LARGEST_SUM = 2**31 - 1  # MatMulInteger sums in int32, and a larger sum wraps around in silence


def require_fitting_weights(
    config: ModelConfig, lowering: Lowering, signatures: Sequence[GraphSignature]
) -> None:
    """Check that every quantized weight has a number of inputs that its form computes rightly.

    Blocks that are partly padding would be allowed by some ops and read wrongly by others.

    Args:
        config: the model's.
        lowering: with the form of the weights of every kind of graph.
        signatures: of the graphs to export.

    Raises:
        ExportError: names every kind of weight that has another number of inputs.
    """
    kinds = list(dict.fromkeys(signature.kind for signature in signatures))
    faults = _faults(config, lowering, kinds)
    if faults:
        fitting = [
            each.name
            for each in target_named(lowering.target).weight_formats
            if not _faults(config, replace(lowering, weight_format=each.name), kinds)
        ]
        raise ExportError(
            f"weights {lowering.weight_format} of target {lowering.target} do not fit this model: "
            f"{'; '.join(faults)}; export with --weights {' or '.join(fitting)}"
        )


def most_inputs(weight: str, num_in: int, form: WeightForm) -> int | None:
    """The most inputs of that weight whose sums fit int32; None if there is no limit.

    Products of rounded rows are summed over all inputs of a part of a row. MatMulNBits sums codes
    of one block alone.

    Args:
        weight: its name, which decides into how many parts its input rows are cut.
        num_in: its inputs.
        form: how it is held.
    """
    if form.activations != U8_ROWS:
        return None
    largest_code = 2 ** (form.bits - 1) - 1
    return form.parts_of(weight, num_in) * (LARGEST_SUM // (U8_STEPS * largest_code))


def _faults(config: ModelConfig, lowering: Lowering, kinds: Sequence[GraphKind]) -> list[str]:
    """What is wrong with the inputs of the weights of these kinds of graphs, each fault once."""
    forms = {kind: form for kind in kinds if (form := lowering.weight_form(kind))}
    return list(
        dict.fromkeys(
            f"{name} has {num_in} inputs, {wanted}"
            for kind, form in forms.items()
            for name, num_in in _num_inputs(config, kind).items()
            if (wanted := _wanted(name, num_in, form))
        )
    )


def _wanted(weight: str, num_in: int, form: WeightForm) -> str:
    """What that weight should have instead of `num_in` inputs; "" if the form fits it."""
    if form.block is not None and num_in % form.block:
        return f"wanted a multiple of {form.block}"
    most = most_inputs(weight, num_in, form)
    if most is not None and num_in > most:
        return f"wanted at most {most:,}, which {form.op} sums in int32 without an overflow"
    return ""


def _num_inputs(config: ModelConfig, kind: GraphKind) -> dict[str, int]:
    """Inputs of the quantized weights of a kind of graph, by name; "*" stands for any layer."""
    # All layers of vision have equal sizes, so one is enough, and ready ten times sooner.
    one_layer = replace(config.vision_config, num_hidden_layers=1)
    with torch.device("meta"):
        module = REFERENCES[kind](replace(config, vision_config=one_layer))
    prefix = kind.cut_prefix.format(layer="*") if kind.is_layer else ""
    return {
        f"{prefix}{path.replace('layers.0.', 'layers.*.')}.weight": linear.in_features
        for path, linear in quantized_linears(module).items()
    }
