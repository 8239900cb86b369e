"""What is kept of one stream for judging others: graphs' inputs step by step, and all its calls.

Arrays only, no PyTorch: a recording is made from the running reference (`reference_recording`) or
read from golden files (`golden`) on a device that has none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.plan.layout import StepLayout
from mod_edge.plan.signature import GraphSignature, TensorSpec
from mod_edge.plan.targets import Lowering
from mod_edge.runtime.loaded_model import Float32Array, Int64Array, UInt8Array

AFTER_ROLL = ", after a roll"

Arrays = dict[str, npt.NDArray[Any]]
Selections = Mapping[int, Int64Array]  # by number of the step, (F, K) positions within each frame


def step_kind(layout: StepLayout, past: Rows) -> str:
    """What sort of step this is, for people; recorded steps are told apart by it."""
    if past.dense == 0:
        return "first"
    if layout.num_frames:
        return "one frame" if layout.num_frames == 1 else "many frames"
    return "prefill" if layout.num_tokens > 1 else "decode"


def held_dtype(spec: TensorSpec) -> np.dtype[Any]:
    """The dtype in which a tensor's values are held here: bfloat16, which numpy lacks, widened."""
    return np.dtype("float32" if spec.dtype == "bfloat16" else spec.dtype)


@dataclass(frozen=True)
class GraphStep:
    """One step as one graph meets it.

    Attributes:
        kind: from `step_kind`, with `AFTER_ROLL` behind it where rows had just been evicted.
        inputs: by the signature's names, in `held_dtype`, rounded to the graph's dtype.
        router_logits: (F, N) of a MoD layer with a router, to tell ties from other selections.
    """

    kind: str
    inputs: Arrays
    router_logits: Float32Array | None = None


@dataclass(frozen=True)
class GraphRecording:
    """One graph's recorded steps and the right outputs for them.

    Attributes:
        signature: the graph's.
        lowering: what it was made for.
        steps: at least one, each of another kind.
        outputs: the right outputs of every step by the signature's names, int64 or float32. Where
            it is given selections of steps, it follows these instead of its own.
    """

    signature: GraphSignature
    lowering: Lowering
    steps: tuple[GraphStep, ...]
    outputs: Callable[[Selections], list[Arrays]]


@dataclass(frozen=True)
class EncodeCall:
    """Frames (F, I, I, 3) uint8 were encoded."""

    frames: UInt8Array


@dataclass(frozen=True)
class StepCall:
    """A step was run.

    Attributes:
        pieces: as in `layout`.
        token_ids: of its text.
        first_frame: which of the frames last encoded is the step's first.
        position: stream position of its first token.
        past: rows of the cache before it.
        kept: by MoD layer, the reference's selection (F, K).
        router_logits: by MoD layer with a router, the reference's (F, N).
    """

    pieces: tuple[int, ...]
    token_ids: tuple[int, ...]
    first_frame: int
    position: int
    past: Rows
    kept: dict[int, Int64Array]
    router_logits: dict[int, Float32Array]


@dataclass(frozen=True)
class ReadCall:
    """Logits were read at `rows` of the last step; the reference's are (rows, V)."""

    rows: tuple[int, ...]
    logits: Float32Array


@dataclass(frozen=True)
class EvictCall:
    """Rows were evicted."""

    eviction: Eviction


Call = EncodeCall | StepCall | ReadCall | EvictCall


@dataclass(frozen=True)
class StreamTrace:
    """Every call of a session to its runner, in order, with the reference's answers.

    Attributes:
        calls: in order.
        capacity: rows of the window; a runner may have more.
        max_step_tokens: T at most.
        frames_per_step: F at most.
        threshold: the session's, see `Protocol`.
    """

    calls: tuple[Call, ...]
    capacity: Rows
    max_step_tokens: int
    frames_per_step: int
    threshold: float

    def count(self, kind: type[Call]) -> int:
        """Calls of one kind."""
        return sum(isinstance(call, kind) for call in self.calls)
