"""A whole stream compared with its trace: healthy backends pass, faults and clear differences fail.

Answers and selections are tested on a stream that repeats the trace's own, with changes.
"""

from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer

from mod_edge.bundle.manifest import TOKENIZER_FILE
from mod_edge.errors import CacheError
from mod_edge.model.presets import preset_config
from mod_edge.plan.protocol import Protocol
from mod_edge.runtime.cpu.kv_cache import KvCache
from mod_edge.runtime.cpu.torch_model import TorchModel
from mod_edge.runtime.loaded_model import StreamState
from mod_edge.verification.recording import EncodeCall, EvictCall, ReadCall, StepCall
from mod_edge.verification.reference_stream import MIN_ROLLS, follow_stream
from mod_edge.verification.stream_check import call_layout, check_stream
from mod_edge.verification.tolerances import STREAM_TOLERANCES, StreamTolerance
from mod_edge.verification.trace_file import read_trace, write_trace
from tests.runtime.streams import onnx_stream

pytestmark = pytest.mark.numeric

CONFIG = preset_config("tiny")
SILENT, SPEAK = CONFIG.stream_config.frame_token_interval_id, CONFIG.stream_config.stream_end_id
# Largest and mean error of a row's logits with the tiny bundles: measured 2e-5 and 4e-6 in fp32,
# 0.035 and 0.007 in fp16. The mildest fault below gives 3.1 and 0.8.
HEALTHY = {"fp32": (1e-4, 2e-5), "fp16": (0.1, 0.02)}
NOT_JUDGED = StreamTolerance(1.0, 1.0, 1.0, is_judged=False)


@pytest.fixture(scope="module")
def trace(recorded_stream):
    return recorded_stream[2]


@pytest.fixture(scope="module")
def check(tiny_checkpoint, trace):
    """`check(state, trace=trace, tolerance=<of fp32>, follow=None)`: the stream's result."""
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / TOKENIZER_FILE))

    def run(state, trace=trace, tolerance=STREAM_TOLERANCES["fp32"], follow=None):
        protocol = Protocol(CONFIG.stream_config, tokenizer, trace.threshold)
        return check_stream(
            trace, state, CONFIG, protocol, tolerance, backend="backend", follow=follow
        )

    return run


@pytest.fixture(scope="module")
def follow(recorded_stream):
    model, _, trace = recorded_stream
    return lambda selections: follow_stream(model, trace, selections)


def on_onnx(folder, trace):
    return onnx_stream(
        folder,
        trace.capacity,
        max_step_tokens=trace.max_step_tokens,
        frames_per_step=trace.frames_per_step,
    )


# ---- what is recorded ----


def test_the_stream_has_rolls_questions_and_steps_of_several_frames(trace):
    steps = [call for call in trace.calls if isinstance(call, StepCall)]
    assert trace.count(EvictCall) >= MIN_ROLLS == 3
    assert max(call_layout(step, CONFIG).num_frames for step in steps) == trace.frames_per_step == 3
    assert any(call_layout(step, CONFIG).num_frames == 1 for step in steps[1:])
    num_texts = sum(not call_layout(step, CONFIG).num_frames for step in steps)
    assert 3 <= num_texts < len(steps)


def test_every_frame_of_a_step_was_encoded_before(trace):
    num_encoded = 0
    for call in trace.calls:
        if isinstance(call, EncodeCall):
            num_encoded = len(call.frames)
        elif isinstance(call, StepCall):
            assert call.first_frame + call_layout(call, CONFIG).num_frames <= num_encoded


def test_the_reference_itself_makes_no_error(check, trace, recorded_stream):
    result = check(TorchModel(recorded_stream[0]).open_stream())
    assert (result.status, result.largest, result.num_ties) == ("ok", 0, 0)
    assert result.num_rolls == trace.count(EvictCall)
    assert result.num_steps == trace.count(StepCall)
    assert result.num_answers > result.num_frames >= 16


# ---- streams of the runtime ----


@pytest.mark.parametrize(("target", "precision"), [("cpu", "fp32"), ("cuda", "fp16")])
def test_a_healthy_bundle_gives_the_references_stream(
    check, trace, any_bundle, follow, target, precision
):
    with on_onnx(any_bundle(target, precision), trace) as state:
        result = check(state, tolerance=STREAM_TOLERANCES[precision], follow=follow)
    assert result.status == "ok", result.reason
    largest, mean = HEALTHY[precision]
    assert result.largest <= largest
    assert result.mean <= mean
    if precision == "fp32":
        assert not result.other_answers
        assert result.num_ties == 0


def not_rebased(eviction):
    return replace(eviction, num_evicted=0)


def rebased_by_mod_rows(eviction):
    counted = eviction.num_evicted * eviction.dropped.mod // eviction.dropped.dense
    return replace(eviction, num_evicted=counted)


@pytest.mark.parametrize("fault", [not_rebased, rebased_by_mod_rows])
@pytest.mark.parametrize(("target", "precision"), [("cpu", "fp32"), ("cuda", "fp16")])
def test_a_wrong_rebase_of_the_sink_fails(
    check, trace, any_bundle, follow, monkeypatch, fault, target, precision
):
    evict = KvCache.evict
    monkeypatch.setattr(KvCache, "evict", lambda cache, eviction: evict(cache, fault(eviction)))
    with on_onnx(any_bundle(target, precision), trace) as state:
        result = check(state, tolerance=STREAM_TOLERANCES[precision], follow=follow)
    assert result.status == "failed"
    assert result.gap > 10 * STREAM_TOLERANCES[precision].tied_logits
    assert result.largest > 3 * STREAM_TOLERANCES[precision].largest


# ---- answers and selections ----


class Echo(StreamState):
    """Repeats the trace's answers, with changes by number of the step."""

    name = "echo"

    def __init__(self, trace, *, logits=None, kept=None):
        self.steps = iter([call for call in trace.calls if isinstance(call, StepCall)])
        self.reads = iter([call for call in trace.calls if isinstance(call, ReadCall)])
        self.change_logits, self.change_kept = logits or {}, kept or {}
        self.step_number = -1

    def encode(self, frames):
        return np.zeros((len(frames), 1, 1), np.float32)

    def step(self, layout, token_ids, frame_embeds, *, position, past):
        self.now = next(self.steps)
        self.step_number += 1

    def logits(self, rows):
        logits = next(self.reads).logits.copy()
        change = self.change_logits.get(self.step_number)
        return logits if change is None else change(logits)

    def evict(self, eviction):
        pass

    @property
    def kept(self):
        kept = {layer: each.copy() for layer, each in self.now.kept.items()}
        change = self.change_kept.get(self.step_number)
        return kept if change is None else change(kept, self.now.router_logits)


def steps_of(trace, *, has_frames):
    """Numbers of the steps with or without frames, except the first."""
    steps = [call for call in trace.calls if isinstance(call, StepCall)]
    return [
        number
        for number, step in enumerate(steps)
        if number and bool(call_layout(step, CONFIG).num_frames) == has_frames
    ]


def changed_at(trace, step, kind, change):
    """The trace with `change(call)` in place of the calls of this kind that belong to a step."""
    calls, number = [], -1
    for call in trace.calls:
        number += isinstance(call, StepCall)
        is_chosen = isinstance(call, kind) and number == step
        calls.append(change(call) if is_chosen else call)
    return replace(trace, calls=tuple(calls))


def preferring(token_id, by):
    """Logits whose likeliest token is `token_id`, by this share of the largest."""

    def change(logits):
        logits[:, token_id] = logits.max(axis=1) + by * np.abs(logits).max(axis=1)
        return logits

    return change


def test_the_traces_own_answers_are_right(check, trace):
    result = check(Echo(trace))
    assert (result.status, result.largest, result.other_answers) == ("ok", 0, [])


def test_another_token_is_named_with_its_step_and_margin(check, trace):
    step = steps_of(trace, has_frames=False)[0]
    result = check(Echo(trace, logits={step: preferring(500, 0.01)}))
    assert result.status == "failed"
    assert result.reason.startswith(f"step {step}: token 500, wanted token ")
    (answer,) = result.other_answers
    assert (answer.step, answer.ours) == (step, "token 500")
    assert answer.margin > STREAM_TOLERANCES["fp32"].largest


def test_another_decision_is_named(check, trace):
    step = steps_of(trace, has_frames=True)[0]
    result = check(Echo(trace, logits={step: preferring(SPEAK, 0.01)}))
    assert result.status == "failed"
    assert f"step {step}: speak, wanted " in result.reason
    assert {answer.ours for answer in result.other_answers} == {"speak"}


def tied_at(trace, step, precision):
    """The trace with token 500 at a tenth of a tie's margin below the likeliest, at a step."""

    def change(call):
        logits = call.logits.copy()
        size = np.abs(logits).max(axis=1)
        logits[:, 500] = logits.max(axis=1) - 0.1 * STREAM_TOLERANCES[precision].largest * size
        return replace(call, logits=logits)

    return changed_at(trace, step, ReadCall, change)


def test_a_token_that_the_reference_hardly_prefers_is_counted_and_passes(check, trace):
    step = steps_of(trace, has_frames=False)[0]
    tied = tied_at(trace, step, "fp32")
    echo = Echo(tied, logits={step: preferring(500, 0.1 * STREAM_TOLERANCES["fp32"].largest)})
    result = check(echo, trace=tied)
    assert result.status == "ok", result.reason
    (answer,) = result.other_answers
    assert answer.margin == pytest.approx(0.1 * STREAM_TOLERANCES["fp32"].largest, rel=0.1)


def test_a_decision_at_the_threshold_is_a_tie_by_the_probabilitys_logit(check, trace):
    step = steps_of(trace, has_frames=True)[0]

    def silence_at(probability):
        """Logits in which silence has this probability and speech is next."""

        def change(logits):
            logits[:] = -20
            logits[:, SPEAK] = 0
            logits[:, SILENT] = np.log(probability / (1 - probability))
            return logits

        return change

    above, below = (silence_at(trace.threshold + offset) for offset in (1e-4, -1e-4))
    with_silence = changed_at(
        trace, step, ReadCall, lambda call: replace(call, logits=above(call.logits.copy()))
    )
    result = check(Echo(trace, logits={step: below}), trace=with_silence)
    assert result.status == "ok", result.reason
    assert {(answer.ours, answer.theirs) for answer in result.other_answers} == {
        ("speak", "silent")
    }
    assert 0 < result.other_answers[0].margin < 1e-4


def test_logits_that_are_nan_fail(check, trace):
    step = steps_of(trace, has_frames=True)[0]
    result = check(Echo(trace, logits={step: lambda logits: logits * np.nan}))
    assert result.status == "failed"
    assert result.largest == float("inf")


def test_what_is_not_finite_fails_even_if_the_stream_is_not_judged(check, trace):
    step = steps_of(trace, has_frames=True)[0]
    statuses = [
        check(Echo(trace, logits={step: change}), tolerance=NOT_JUDGED).status
        for change in (preferring(SPEAK, 9), lambda logits: logits * np.nan)
    ]
    assert statuses == ["not judged", "failed"]


def out_of_range(kept, _router_logits):
    return {layer: each + CONFIG.frame_num_tokens for layer, each in kept.items()}


def falling(kept, _router_logits):
    return {layer: each[:, ::-1].copy() for layer, each in kept.items()}


def must_not_follow(_selections):
    pytest.fail("the reference was asked to make this selection")


@pytest.mark.parametrize("change", [out_of_range, falling])
@pytest.mark.parametrize("tolerance", [STREAM_TOLERANCES["fp32"], NOT_JUDGED])
def test_an_impossible_selection_always_fails_and_is_not_followed(check, trace, change, tolerance):
    tie, step = steps_of(trace, has_frames=True)[1:3]
    tied = with_equal_routers(trace, tie)
    echo = Echo(tied, kept={tie: last_tokens, step: change})
    result = check(echo, trace=tied, tolerance=tolerance, follow=must_not_follow)
    assert result.status == "failed"
    assert result.reason.startswith(f"step {step}, layer-01: kept has ")
    assert result.gap == float("inf")


def test_another_selection_without_a_router_fails_and_is_not_followed(check, trace):
    step = steps_of(trace, has_frames=True)[3]
    uniform = changed_at(trace, step, StepCall, lambda call: replace(call, router_logits={}))
    echo = Echo(uniform, kept={step: last_tokens})
    result = check(echo, trace=uniform, tolerance=NOT_JUDGED, follow=must_not_follow)
    assert result.status == "failed"
    assert result.reason.startswith(f"step {step}, layer-01: kept has ")


def next_best(kept, router_logits):
    """Replace every last kept token by the next best."""
    for layer, logits in router_logits.items():
        best = np.argsort(-logits, axis=1)[:, : CONFIG.num_kept + 1]
        best[:, -2] = best[:, -1]
        kept[layer] = np.sort(best[:, :-1], axis=1)
    return kept


def test_other_tokens_kept_are_named_with_step_layer_and_gap(check, trace):
    step = steps_of(trace, has_frames=True)[0]
    result = check(Echo(trace, kept={step: next_best}))
    assert result.status == "failed"
    assert result.reason.startswith(f"step {step}, layer-01: kept has ")
    assert result.gap > STREAM_TOLERANCES["fp32"].tied_logits


def last_tokens(kept, _router_logits):
    last = np.array([CONFIG.frame_num_tokens - 2, CONFIG.frame_num_tokens - 1])
    return {layer: np.broadcast_to(last, each.shape).copy() for layer, each in kept.items()}


def with_equal_routers(trace, step):
    def change(call):
        equal = {layer: np.ones_like(each) for layer, each in call.router_logits.items()}
        return replace(call, router_logits=equal)

    return changed_at(trace, step, StepCall, change)


def test_without_the_reference_the_comparison_ends_at_the_first_tie(check, trace):
    step = steps_of(trace, has_frames=True)[3]
    tied = with_equal_routers(trace, step)
    echo = Echo(tied, kept={step: last_tokens}, logits={step: preferring(500, 0.3)})
    result = check(echo, trace=tied)
    assert result.status == "ok", result.reason
    assert result.num_steps == step < trace.count(StepCall)
    assert result.num_ties > 0
    assert result.gap == 0


def test_with_the_reference_a_tie_is_followed_to_the_end(check, trace, follow):
    step = steps_of(trace, has_frames=True)[3]
    tied = with_equal_routers(trace, step)
    requested = []

    def remember(selections):
        requested.append(selections)
        return follow(selections)

    assert check(Echo(tied, kept={step: last_tokens}), trace=tied).num_steps == step
    result = check(Echo(tied, kept={step: last_tokens}), trace=tied, follow=remember)
    assert result.num_steps == trace.count(StepCall)
    (selections,) = requested
    followed = follow(selections)
    steps = [call for call in followed.calls if isinstance(call, StepCall)]
    np.testing.assert_array_equal(steps[step].kept[1], selections[step][1])
    assert steps[step].kept[1].tolist() == [[8, 9]] * len(steps[step].kept[1])
    before, after = (
        [call.logits for call in each.calls if isinstance(call, ReadCall)]
        for each in (trace, followed)
    )
    np.testing.assert_array_equal(after[0], before[0])
    assert np.abs(after[-1] - before[-1]).max() > 0.01, "the selection changed what comes after"


def test_a_stream_that_raises_fails_with_the_reason(check, trace):
    class Full(Echo):
        def step(self, *_args, **_kwargs):
            raise CacheError("the cache is full")

    result = check(Full(trace))
    assert (result.status, result.reason) == ("failed", "the cache is full")


# ---- the trace as a file ----


def test_a_trace_reads_back_as_it_was_written(trace, tmp_path):
    path = tmp_path / "stream.npz"
    write_trace(trace, path)
    again = read_trace(path)
    assert replace(again, calls=()) == replace(trace, calls=())
    assert len(again.calls) == len(trace.calls)
    for ours, theirs in zip(again.calls, trace.calls, strict=True):
        assert type(ours) is type(theirs)
        assert vars(ours).keys() == vars(theirs).keys()
        for name, value in vars(theirs).items():
            np.testing.assert_equal(vars(ours)[name], value)
