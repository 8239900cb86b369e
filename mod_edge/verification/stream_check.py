"""Compares a whole stream on one backend with its trace: every call is replayed and compared.

The trace's own tokens are fed, whatever the backend answers, so that one different answer does not
end the comparison. At a tie in a selection the PyTorch reference follows the backend's; golden
files cannot, so there the comparison ends at the first tie.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mod_edge.config import ModelConfig
from mod_edge.errors import ModEdgeError
from mod_edge.plan.layout import FRAME, StepLayout, step_layout
from mod_edge.plan.parity import num_other_tokens, row_scales, selection_gap
from mod_edge.plan.protocol import Protocol
from mod_edge.plan.signature import layer_name
from mod_edge.runtime.loaded_model import Float32Array, Int64Array, StreamState
from mod_edge.verification.recording import EncodeCall, EvictCall, ReadCall, StepCall, StreamTrace
from mod_edge.verification.tolerances import StreamQuantizingCost, StreamTolerance

STREAM = "stream"  # in place of a graph's name


@dataclass(frozen=True)
class Answer:
    """A decision at a frame, or a token, that differs from the reference's.

    Attributes:
        step: number of the step.
        ours, theirs: the decision, or the token's id.
        margin: in the reference, the difference of the two logits relative to the largest logit.
    """

    step: int
    ours: str
    theirs: str
    margin: float


@dataclass(frozen=True)
class StreamResult:
    """The result of a stream on one backend.

    Attributes:
        backend: its name.
        status: "ok", "failed", "not judged" (see `StreamTolerance`) or "not run".
        reason: the fault, or why it was not judged or run; "" if ok.
        num_steps, num_frames, num_rolls: what was compared.
        num_answers: decisions and tokens compared; the different ones are in `other_answers`.
        largest, mean: over the largest error of each row of logits, relative to its largest logit.
        allowed, allowed_mean: the largest and mean error allowed; 0 if it was not run.
        cost: of quantizing; None if the stream is not judged by it.
        num_selections: frames times MoD layers compared.
        num_ties: tokens kept in these that the reference drops.
        gap: largest difference of router logits between such tokens, relative to the largest.
    """

    backend: str
    status: str
    reason: str = ""
    num_steps: int = 0
    num_frames: int = 0
    num_rolls: int = 0
    num_answers: int = 0
    other_answers: list[Answer] = field(default_factory=list)
    largest: float = 0.0
    mean: float = 0.0
    allowed: float = 0.0
    allowed_mean: float = 0.0
    cost: StreamQuantizingCost | None = None
    num_selections: int = 0
    num_ties: int = 0
    gap: float = 0.0


@dataclass(frozen=True)
class Replay:
    """A backend's results for a trace: selections by step and MoD layer, logits by read call."""

    selections: list[dict[int, Int64Array]]
    logits: list[Float32Array]


Follow = Callable[[Sequence[dict[int, Int64Array]]], StreamTrace]


def replay(trace: StreamTrace, state: StreamState, config: ModelConfig) -> Replay:
    """Make every call of the trace on `state`.

    Raises:
        ModEdgeError: a call fails.
    """
    selections: list[dict[int, Int64Array]] = []
    logits: list[Float32Array] = []
    embeds = None
    for call in trace.calls:
        if isinstance(call, EncodeCall):
            embeds = state.encode(call.frames)
        elif isinstance(call, EvictCall):
            state.evict(call.eviction)
        elif isinstance(call, ReadCall):
            logits.append(state.logits(call.rows).copy())
        else:
            layout = call_layout(call, config)
            frames = slice(call.first_frame, call.first_frame + layout.num_frames)
            state.step(
                layout,
                call.token_ids,
                embeds[frames] if embeds is not None and layout.num_frames else None,
                position=call.position,
                past=call.past,
            )
            selections.append({layer: kept.copy() for layer, kept in state.kept.items()})
    return Replay(selections, logits)


def call_layout(call: StepCall, config: ModelConfig) -> StepLayout:
    """The layout of a traced step."""
    return step_layout(call.pieces, config.frame_num_tokens, config.num_kept)


def check_stream(
    trace: StreamTrace,
    state: StreamState,
    config: ModelConfig,
    protocol: Protocol,
    tolerance: StreamTolerance,
    *,
    backend: str,
    follow: Follow | None,
) -> StreamResult:
    """Replay the trace on `state` and compare its answers.

    Args:
        trace: the reference's.
        state: a new stream; not closed here.
        config: the model's.
        protocol: decides by logits.
        tolerance: what is allowed.
        backend: name of the backend.
        follow: returns the reference's trace for given selections; None for golden files.
    """
    try:
        ours = replay(trace, state, config)
    except ModEdgeError as exc:
        return StreamResult(backend, "failed", str(exc))
    chosen = _selections(trace, ours)
    # No tie and nothing to follow: positions that a frame does not have or that do not rise, or
    # another selection than the one that is fixed without a router.
    impossible = [each.step for each in chosen if not np.isfinite(each.gap)]
    tied = [each.step for each in chosen if each.num_other]
    end = min(impossible or tied, default=None)
    if tied and not impossible and follow is not None:
        trace, end = follow(ours.selections), None
        chosen = _selections(trace, ours)
    num_steps = trace.count(StepCall) if end is None else end
    chosen = [each for each in chosen if end is None or each.step <= end]
    readings = [each for each in _readings(trace, ours, protocol) if each.step < num_steps]
    errors = [reading.largest for reading in readings]
    result = StreamResult(
        backend=backend,
        status="ok",
        num_steps=num_steps,
        num_frames=sum(reading.num_frames for reading in readings),
        num_rolls=trace.count(EvictCall),
        num_answers=sum(reading.num_answers for reading in readings),
        other_answers=[answer for reading in readings for answer in reading.others],
        largest=max(errors, default=0.0),
        mean=float(np.mean(errors or [0.0])),
        allowed=tolerance.largest,
        allowed_mean=tolerance.mean,
        num_selections=sum(each.num_frames for each in chosen),
        num_ties=sum(each.num_other for each in chosen),
        gap=max((each.gap for each in chosen), default=0.0),
    )
    if not tolerance.is_judged and not impossible and np.isfinite(result.largest):
        return replace(result, status="not judged")
    fault = _fault(result, chosen, tolerance)
    return replace(result, status="failed", reason=fault) if fault else result


@dataclass(frozen=True)
class _Selection:
    """A MoD layer's selection in a step: number of tokens that the reference drops, and the gap."""

    step: int
    layer: int
    num_frames: int
    num_other: int
    gap: float


@dataclass(frozen=True)
class _Reading:
    """Logits read after a step: the largest error of a row, and the answers that differ."""

    step: int
    largest: float
    num_frames: int
    num_answers: int
    others: list[Answer]


def _selections(trace: StreamTrace, ours: Replay) -> list[_Selection]:
    steps = [call for call in trace.calls if isinstance(call, StepCall)]
    return [
        _selection(number, layer, ours.selections[number][layer], kept, call)
        for number, call in enumerate(steps)
        for layer, kept in call.kept.items()
        if len(kept)
    ]


def _selection(
    step: int, layer: int, ours: Int64Array, theirs: Int64Array, call: StepCall
) -> _Selection:
    logits = call.router_logits.get(layer)
    if logits is None or not ((ours >= 0) & (ours < logits.shape[1])).all():
        num_other = int((ours != theirs).sum())
        return _Selection(step, layer, len(ours), num_other, np.inf if num_other else 0.0)
    gap = selection_gap(logits, ours)
    return _Selection(step, layer, len(ours), num_other_tokens(logits, ours), gap)


def _readings(trace: StreamTrace, ours: Replay, protocol: Protocol) -> Iterator[_Reading]:
    step, has_frames = -1, False
    logits = iter(ours.logits)
    for call in trace.calls:
        if isinstance(call, StepCall):
            step, has_frames = step + 1, FRAME in call.pieces
        elif isinstance(call, ReadCall):
            mine, right = next(logits), call.logits
            scales = row_scales(right)
            error = float(np.abs(mine / scales - right / scales).max())
            answers = [
                _other_decision(step, row, wanted, protocol, trace.threshold)
                if has_frames
                else _other_token(step, row, wanted)
                for row, wanted in zip(mine, right, strict=True)
            ]
            yield _Reading(
                step,
                largest=error if np.isfinite(error) else np.inf,
                num_frames=len(right) if has_frames else 0,
                num_answers=len(right),
                others=[answer for answer in answers if answer is not None],
            )


def _other_token(step: int, ours: Float32Array, theirs: Float32Array) -> Answer | None:
    """The row's token if it differs from the reference's."""
    mine, right = int(ours.argmax()), int(theirs.argmax())
    if mine == right:
        return None
    return Answer(step, f"token {mine}", f"token {right}", _margin(theirs, mine))


def _other_decision(
    step: int, ours: Float32Array, theirs: Float32Array, protocol: Protocol, threshold: float
) -> Answer | None:
    """The row's decision if it differs from the reference's."""
    mine, right = protocol.decide(ours), protocol.decide(theirs)
    if mine is right:
        return None
    margin = _margin(theirs, int(ours.argmax()))
    if margin == 0:  # silence is the likeliest in both: they differ in the threshold
        margin = _threshold_margin(theirs, threshold)
    return Answer(step, mine.value, right.value, margin)


def _margin(theirs: Float32Array, token_id: int) -> float:
    """The reference's largest logit minus the logit of `token_id`, relative to the largest."""
    return float(theirs.max() - theirs[token_id]) / float(np.abs(theirs).max())


def _threshold_margin(theirs: Float32Array, threshold: float) -> float:
    """Distance of the largest logit from the one whose probability is `threshold`, relative."""
    others = np.delete(theirs.astype(np.float64), theirs.argmax())
    rest = float(others.max() + np.log(np.exp(others - others.max()).sum()))
    at_threshold = rest + float(np.log(threshold / (1 - threshold)))
    return abs(float(theirs.max()) - at_threshold) / float(np.abs(theirs).max())


def _fault(result: StreamResult, chosen: Sequence[_Selection], tolerance: StreamTolerance) -> str:
    """The first fault in the stream; "" for none."""
    untied = next((each for each in chosen if not each.gap <= tolerance.tied_logits), None)
    if untied is not None:
        return (
            f"step {untied.step}, {layer_name(untied.layer)}: kept has {untied.num_other} other "
            f"tokens than the reference, with a gap of {untied.gap:.1e} of the largest router "
            f"logit; ties are up to {tolerance.tied_logits:.0e}"
        )
    clear = [answer for answer in result.other_answers if not answer.margin <= result.allowed]
    if clear:
        first = clear[0]
        return (
            f"step {first.step}: {first.ours}, wanted {first.theirs}, which the reference prefers "
            f"by {first.margin:.1e} of its largest logit; ties are up to {result.allowed:.0e}"
        )
    if not result.largest <= result.allowed:
        return f"logits are off by {result.largest:.1e}, allowed {result.allowed:.0e}"
    if not result.mean <= tolerance.mean:
        return f"logits are off by {result.mean:.1e} on average, allowed {tolerance.mean:.0e}"
    return ""
