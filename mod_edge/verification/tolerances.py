"""The errors that `verify` allows, each chosen from measurements between sound and faulty graphs.

Graphs that round activations have their own, which export's check shares
(`plan.rounding_tolerance`).
"""

from dataclasses import dataclass

from mod_edge.plan.graph_kind import KINDS, GraphKind
from mod_edge.plan.rounding_tolerance import Tolerance, rounding_tolerance
from mod_edge.plan.targets import Lowering


@dataclass(frozen=True)
class StreamQuantizingCost:
    """What quantizing costs a stream: the original weights' logits against the quantized ones'.

    Attributes:
        largest, mean: over the largest error of each row of logits, relative to its largest logit.
        gap: largest difference of router logits between tokens that only one of them keeps,
            relative to the largest one.
    """

    largest: float
    mean: float
    gap: float


@dataclass(frozen=True)
class StreamTolerance:
    """What is allowed of a whole stream's logits, relative to the largest logit of each row.

    Attributes:
        largest: error of a logit; also the margin within which two answers are a tie.
        mean: of all rows' largest errors.
        tied_logits: largest gap of a tie between router logits, relative to the largest one:
            `parity.TIED_LOGITS` and the rounding of all earlier steps.
        is_judged: whether a larger error is a fault; not where the model amplifies rounding so much
            that sound and faulty streams are equally far off.
    """

    largest: float
    mean: float
    tied_logits: float
    is_judged: bool = True


# Measured maxima on the tiny and the 135m preset: fp32 2.0e-6; the fp16 graphs 2.6e-3, torch in
# fp16 3.8e-3; the bf16 graphs widened to float32 1.1e-2, torch in bf16 2.8e-2. Weight-only int8 and
# int4 are within these. Of real faults, the vision tower's GELU without its tanh gives 3.3e-5,
# swapped colours 0.1, all others in a layer 0.4 to 4.
ALLOWED_ERROR = {"fp32": 2e-5, "fp16": 1e-2, "bf16": 8e-2}


def graph_tolerance(kind: GraphKind, lowering: Lowering) -> Tolerance:
    """What is allowed of a graph of that kind."""
    return rounding_tolerance(kind, lowering) or Tolerance(ALLOWED_ERROR[lowering.precision])


# Measured on three seeds of the tiny preset, whose random layers amplify rounding: fp32 2e-5 and
# 4e-6; torch fp16 0.11 and 0.012, the fp16 graphs 0.035 and 0.007; torch bf16 0.95 and 0.09.
# Router logits differed by nothing in fp32, 1.4e-3 in fp16, 0.28 in bf16. A sink that is not
# rebased gives 4.2 and 0.9, one rebased by MoD rows 3.1 and 0.8, and router logits up to 1.7.
STREAM_TOLERANCES = {
    "fp32": StreamTolerance(1e-3, 1e-4, 1e-4),
    "fp16": StreamTolerance(0.3, 0.05, 0.02),
    "bf16": StreamTolerance(2.0, 0.3, 0.5),
}
# Where activations are rounded, a value on the other side of two codes changes what follows, and by
# how much depends on the model: no fixed limits hold for all. What quantizing costs the same stream
# is amplified as much. Largest and mean error of sound streams in multiples of this cost: three
# seeds of the tiny preset up to 0.38 and 0.23, the shipped model 0.42 and 0.57 (its predecessor
# 0.34 and 0.37), SmolLM2 0.70 and 1.01. A sink that is not rebased, or by MoD rows, gives at least
# 2.1 and 2.0 on tiny, 4.6 and 2.6 on the predecessor.
ALLOWED_TIMES_COST = 1.5
# A stream whose logits quantizing moves by more than this on average judges nothing: in the 30
# random layers of the 135m preset sound graphs are off by 1.9 and 0.56, router logits by 1.2. Of
# the models above, a seed of tiny has the largest cost, 0.27.
LARGEST_COST_JUDGED = 0.35
# A tie of router logits is one token, whose gap varies more: up to 0.05 in sound streams, and 0.36
# with another CPU's kernels. The reference follows a tie, so a fault still shows in the logits;
# every MoD graph alone has to select exactly. Selecting the smallest weights gives 1.1.
LEAST_TIED_LOGITS = 0.75


def rounds_activations(lowering: Lowering) -> bool:
    """Whether some graphs round activations, so that their stream is judged by its cost."""
    return any(rounding_tolerance(kind, lowering) for kind in KINDS)


def stream_tolerance(lowering: Lowering, cost: StreamQuantizingCost | None) -> StreamTolerance:
    """What is allowed of a bundle's stream.

    Args:
        lowering: the bundle's.
        cost: of quantizing the stream; needed where activations are rounded.
    """
    if not rounds_activations(lowering):
        return STREAM_TOLERANCES[lowering.precision]
    assert cost is not None, "the reference of a bundle that rounds activations measures it"
    return StreamTolerance(
        ALLOWED_TIMES_COST * cost.largest,
        ALLOWED_TIMES_COST * cost.mean,
        max(LEAST_TIED_LOGITS, cost.gap),
        is_judged=cost.mean <= LARGEST_COST_JUDGED,
    )
