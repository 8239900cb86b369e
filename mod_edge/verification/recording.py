"""Recordings of a stream through the reference: inputs of every graph, and all calls in order.

Arrays only, no PyTorch: a recording comes from the PyTorch reference (`reference_recording`) or,
on a device without PyTorch, from golden files (`golden`).
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
    """The kind of a step, for display and to choose the steps that are recorded."""
    if past.dense == 0:
        return "first"
    if layout.num_frames:
        return "one frame" if layout.num_frames == 1 else "many frames"
    return "prefill" if layout.num_tokens > 1 else "decode"


def held_dtype(spec: TensorSpec) -> np.dtype[Any]:
    """The numpy dtype of a recorded tensor: float32 for bfloat16, which numpy lacks."""
    return np.dtype("float32" if spec.dtype == "bfloat16" else spec.dtype)


@dataclass(frozen=True)
class GraphStep:
    """One step's inputs of one graph.

    Attributes:
        kind: from `step_kind`, followed by `AFTER_ROLL` if rows had just been evicted.
        inputs: by the signature's names, in `held_dtype`, rounded to the graph's dtype.
        router_logits: (F, N) of a MoD layer with a router, to recognize ties.
    """

    kind: str
    inputs: Arrays
    router_logits: Float32Array | None = None


@dataclass(frozen=True)
class GraphRecording:
    """One graph's recorded steps and the expected outputs for them.

    Attributes:
        signature: the graph's.
        lowering: what the graph was exported for.
        steps: at least one, no two of the same kind.
        outputs: returns the expected outputs of every step by the signature's names, int64 or
            float32; selections given for a step replace the reference's own.
        original: the same with the checkpoint's weights, to measure what quantizing costs; None if
            the graph is not quantized or they were not saved.
    """

    signature: GraphSignature
    lowering: Lowering
    steps: tuple[GraphStep, ...]
    outputs: Callable[[Selections], list[Arrays]]
    original: Callable[[Selections], list[Arrays]] | None = None


@dataclass(frozen=True)
class EncodeCall:
    """Frames (F, I, I, 3) uint8 were encoded."""

    frames: UInt8Array


@dataclass(frozen=True)
class StepCall:
    """A step was run.

    Attributes:
        pieces: as in `StepLayout`.
        token_ids: of its text.
        first_frame: index of the step's first frame among the frames last encoded.
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
    """Every call of a session to its stream state, with the reference's answers.

    Attributes:
        calls: in order.
        capacity: rows of the window; a backend's cache may have more.
        max_step_tokens: largest T.
        frames_per_step: largest F.
        threshold: the session's, see `Protocol`.
    """

    calls: tuple[Call, ...]
    capacity: Rows
    max_step_tokens: int
    frames_per_step: int
    threshold: float

    def count(self, kind: type[Call]) -> int:
        """The number of calls of one kind."""
        return sum(isinstance(call, kind) for call in self.calls)
