"""The weight formats of every target as a table: the ops that multiply, and what a weight costs."""

from dataclasses import dataclass

from mod_edge.plan.targets import DTYPES, ITEM_BYTES, TARGETS, Target
from mod_edge.plan.weight_forms import WeightForm, WeightFormat


@dataclass(frozen=True)
class WeightRow:
    """How one part of a target's graphs holds and multiplies its weights in one format.

    Attributes:
        target: name of the target.
        weights: value of `--weights`.
        part: "layers" (of the decoder), "others" (head, vision encoder, connector), or "all".
        op: as in `WeightForm`; "MatMul" of weights in the precision's dtype.
        bits: of a weight; None for the precision's.
        block: as in `WeightForm`.
        method: as in `WeightForm`, "" of weights in the precision's dtype.
        activations: as in `WeightForm`.
        bytes_per_weight: by precision, a block's scale and zero point included.
    """

    target: str
    weights: str
    part: str
    op: str
    bits: int | None
    block: int | None
    method: str
    activations: str
    bytes_per_weight: dict[str, float]


def weight_table() -> list[WeightRow]:
    """The rows of every target, in the order of `TARGETS`; two where layers have another form."""
    return [
        _row(target, each, part, form)
        for target in TARGETS.values()
        for each in target.weight_formats
        for part, form in _parts(each)
    ]


def _parts(weights: WeightFormat) -> list[tuple[str, WeightForm | None]]:
    if weights.layers == weights.others:
        return [("all", weights.layers)]
    return [("layers", weights.layers), ("others", weights.others)]


def _row(target: Target, weights: WeightFormat, part: str, form: WeightForm | None) -> WeightRow:
    item_bytes = {name: ITEM_BYTES[DTYPES[name]] for name in target.precisions}
    return WeightRow(
        target.name,
        weights.name,
        part,
        form.op if form else "MatMul",
        form.bits if form else None,
        form.block if form else None,
        form.method if form else "",
        form.activations if form else "",
        {
            name: form.bytes_per_weight(size) if form else float(size)
            for name, size in item_bytes.items()
        },
    )
