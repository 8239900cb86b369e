"""Whole streams on engines and on ONNX Runtime: tokens, decisions, selections, rolls.

The engines run in ONNX Runtime too (see `stand_in_tensorrt`): the tests compare everything between
the graphs, which is the work of `DeviceModel` and `DeviceStream`.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from mod_edge.bundle.bundle import open_bundle
from mod_edge.plan.kv_budget import KvPlan, plan_capacity, plan_window
from mod_edge.plan.protocol import Decision
from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.runtime.device.device_cache import DeviceCache
from mod_edge.runtime.events import FrameEvent, InstructionEvent, RollEvent
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import Session
from mod_edge.runtime.text_session import TextSession
from tests.runtime.recorder import Recorder
from tests.runtime.stand_in_model import FRAMES_PER_STEP, MAX_STEP_TOKENS, stand_in_for
from tests.runtime.streams import OPTIONS, TEXT_MINIMUM, onnx_stream, outcome

pytestmark = pytest.mark.numeric

FPS = 8  # 122 frames of the clip
QUERIES = (Query("Please narrate the video in real time."), Query("What happens?", 7.0))
# The bundle that ONNX Runtime runs for each bundle: the only difference is the attribute that
# TensorRT requires of float32 Attention, which ONNX Runtime rejects.
REFERENCES = {
    ("tensorrt-delta", "fp32"): ("tensorrt-delta", "fp32"),
    ("rtx", "fp32"): ("cuda", "fp32"),
    ("rtx", "fp16"): ("rtx", "fp16"),
}
# Largest difference of logits, which go up to 30. With buckets `delta` multiplies other blocks:
# measured 4e-5; `in_place` runs the same graphs on the same shapes: measured 0. A sink that is not
# rebased differs by at least 9.9.
# Tokens, decisions and selections are compared exactly, because none is near a tie: with buckets
# the most likely token leads the next by at least 4.3e-3 and silence is at least 0.040 in log odds
# from the threshold; without them, 1.8e-3 and 0.070.
ATOL_LOGITS = 1e-3
FAULT_LOGITS = 1.0


@dataclass
class Stream:
    """The events, warnings and recorded calls of a stream."""

    recorder: Recorder
    events: list
    warnings: list


def run_stream(folder, state, clip, *, max_frames=None, queries=QUERIES):
    """Run the clip on `state` and close it."""
    bundle = open_bundle(folder)
    config, lowering = bundle.config, bundle.lowering
    if lowering.capacity is None:
        plan = plan_window(config, "260", TEXT_MINIMUM, dtype=lowering.dtype)
    else:
        plan = plan_capacity(config, lowering.capacity, TEXT_MINIMUM, dtype=lowering.dtype)
    recorder = Recorder(state)
    with (
        Session(recorder, config, bundle.tokenizer, plan, OPTIONS) as session,
        VideoFile(clip, fps=FPS, max_frames=max_frames) as source,
    ):
        events = list(session.stream(source, queries))
        return Stream(recorder, events, session.summary().warnings)


@pytest.fixture(scope="module")
def streams(bundle_for, stand_in_bundle, clip):
    """`streams(target, precision)`: the same stream on engines and on ONNX Runtime."""

    @cache
    def run(target, precision):
        machine = stand_in_for(stand_in_bundle(target, precision))
        machine.build()
        with machine.load() as model:
            ours = run_stream(machine.bundle.folder, model.open_stream(), clip)
        reference = bundle_for(*REFERENCES[target, precision])
        state = onnx_stream(
            reference,
            machine.limits.capacity,
            max_step_tokens=MAX_STEP_TOKENS,
            frames_per_step=FRAMES_PER_STEP,
        )
        return ours, run_stream(reference, state, clip)

    return run


every_bundle = pytest.mark.parametrize(("target", "precision"), REFERENCES)


@every_bundle
def test_both_backends_produce_the_same_tokens_decisions_and_rolls(streams, target, precision):
    ours, theirs = streams(target, precision)
    assert outcome(ours.events) == outcome(theirs.events)
    assert ours.recorder.steps == theirs.recorder.steps


def converse(folder, state, capacity):
    """Token ids and rolls of a conversation of text alone on `state`, which is closed."""
    bundle = open_bundle(folder)
    plan = KvPlan(capacity, 0, 0.0, 0.0)
    with TextSession(state, bundle.config, bundle.tokenizer, plan, OPTIONS) as session:
        events = list(session.converse([query.text for query in QUERIES] * 4))
    return outcome(events)


@every_bundle
def test_both_backends_say_the_same_without_video(bundle_for, stand_in_bundle, target, precision):
    machine = stand_in_for(stand_in_bundle(target, precision))
    machine.build()
    with machine.load() as model:
        ours = converse(machine.bundle.folder, model.open_stream(), machine.limits.capacity)
    reference = bundle_for(*REFERENCES[target, precision])
    state = onnx_stream(
        reference,
        machine.limits.capacity,
        max_step_tokens=MAX_STEP_TOKENS,
        frames_per_step=FRAMES_PER_STEP,
    )
    _, replies, rolls = theirs = converse(reference, state, machine.limits.capacity)
    assert ours == theirs
    assert len(replies) == 8
    assert len(rolls) >= 2


@every_bundle
def test_both_backends_select_the_same_tokens_in_every_step(streams, target, precision):
    ours, theirs = streams(target, precision)
    assert ours.recorder.selections == theirs.recorder.selections
    assert sum(len(kept) for step in ours.recorder.selections for kept in step.values()) > 300


def largest_difference(ours, theirs):
    """The largest difference of logits, up to the first step that differs."""
    ours, theirs = ours.recorder, theirs.recorder
    num_same = sum(our == their for our, their in zip(ours.steps, theirs.steps, strict=False))
    pairs = zip(ours.all_logits[:num_same], theirs.all_logits[:num_same], strict=False)
    return max(np.abs(our - their).max() for our, their in pairs if our.shape == their.shape)


@every_bundle
def test_logits_agree_to_rounding(streams, target, precision):
    ours, theirs = streams(target, precision)
    assert len(ours.recorder.all_logits) == len(theirs.recorder.all_logits) > 200
    assert largest_difference(ours, theirs) < ATOL_LOGITS


@every_bundle
def test_a_sink_that_is_not_rebased_is_far_off(
    streams, make_machine, clip, monkeypatch, target, precision
):
    monkeypatch.setattr(DeviceCache, "_rebase", lambda *_: None)
    machine = make_machine(target, precision)
    with machine.load() as model:
        ours = run_stream(machine.bundle.folder, model.open_stream(), clip, max_frames=40)
    assert largest_difference(ours, streams(target, precision)[1]) > FAULT_LOGITS


@every_bundle
def test_another_instruction_in_the_sink_is_the_same_on_both_backends(
    bundle_for, make_machine, clip, target, precision
):
    queries = (*QUERIES[:1], Query("Say when the box stops.", 1.0, is_instruction=True))
    machine = make_machine(target, precision)
    with machine.load() as model:
        state = model.open_stream()
        ours = run_stream(machine.bundle.folder, state, clip, max_frames=50, queries=queries)
    reference = bundle_for(*REFERENCES[target, precision])
    state = onnx_stream(
        reference,
        machine.limits.capacity,
        max_step_tokens=MAX_STEP_TOKENS,
        frames_per_step=FRAMES_PER_STEP,
    )
    theirs = run_stream(reference, state, clip, max_frames=50, queries=queries)
    kinds = [type(event) for event in ours.events]
    assert RollEvent in kinds[kinds.index(InstructionEvent) :]
    assert outcome(ours.events) == outcome(theirs.events)
    assert ours.recorder.steps == theirs.recorder.steps
    assert largest_difference(ours, theirs) < ATOL_LOGITS


@every_bundle
def test_the_stream_covers_every_case(streams, target, precision):
    ours, _ = streams(target, precision)
    decisions = Counter(event.decision for event in ours.events if isinstance(event, FrameEvent))
    assert min(decisions[Decision.SILENT], decisions[Decision.SPEAK]) >= 10
    assert decisions[Decision.ASKED] == len(QUERIES)
    assert sum(isinstance(event, RollEvent) for event in ours.events) >= 10
    num_frames = Counter(pieces.count(0) for pieces, *_ in ours.recorder.steps)
    assert set(num_frames) == {0, 1, 2, 3}


def test_a_session_reports_its_streams_warnings(make_machine, clip):
    machine = make_machine("rtx", "fp16")
    machine.tensorrt.api.is_capturable = False
    with machine.load() as model:
        stream = run_stream(machine.bundle.folder, model.open_stream(), clip, max_frames=5)
        warnings = stream.warnings
    assert stream.recorder.warnings == warnings[:1]
    assert "run layer by layer, not as one CUDA graph" in warnings[0]
