"""The errors that export and `verify` allow in a graph that rounds activations.

A value halfway between two codes may be rounded to either, because graph and reference compute it
with different float32 rounding, and one such step of a code is up to 2e-3 of a row. It is rare, so
the mean stays small, whereas a fault of the arithmetic moves every value.
"""

import math
from dataclasses import dataclass

from mod_edge.plan.graph_kind import VISION, GraphKind
from mod_edge.plan.targets import Lowering


@dataclass(frozen=True)
class Tolerance:
    """Errors allowed in a graph's outputs, relative to the largest value of each row.

    Attributes:
        largest: of a value.
        mean: of all values of an output over all steps.
    """

    largest: float
    mean: float = math.inf


# Layers and heads for the CPU in int8 and int4: the presets tiny and 135m, another geometry, the
# former shipped model and SmolLM2 with its outliers give 1.4e-2 and 2.7e-5, the wider layers of 1b,
# whose rows have more values, 4e-4 on average. Of real faults, one activation scale per tensor
# gives 0.036 and 4e-3, all others 0.4 and 0.03 or more.
ALLOWED_WITH_ROUNDED_ACTIVATIONS = Tolerance(5e-2, 1e-3)
# A vision tower is one graph of many layers: a value on the other side brings more after it, up to
# 0.6 of what quantizing costs. Measured 0.011 and 6e-4 on the former shipped model, 0.029 and
# 5.1e-3 on SigLIP-B/16-224. One activation scale a tensor gives 0.063 and 0.01 there, which only
# the layers' bounds tell apart from rounding; a zero point of 0 gives 1.3 and 0.2.
ALLOWED_OF_VISION_WITH_ROUNDED_ACTIVATIONS = Tolerance(0.1, 2e-2)


def rounding_tolerance(kind: GraphKind, lowering: Lowering) -> Tolerance | None:
    """What is allowed of a graph of that kind; None if it does not round activations."""
    form = lowering.weight_form(kind)
    if form is None or not form.activations:
        return None
    if kind is VISION:
        return ALLOWED_OF_VISION_WITH_ROUNDED_ACTIVATIONS
    return ALLOWED_WITH_ROUNDED_ACTIVATIONS
