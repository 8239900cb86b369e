"""Bundles of the published family's other frame layouts, compared with their checkpoints.

The default layout (CLS, a 3 x 3 grid, an interval token) is compared in `test_verify`.
"""

import functools
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from mod_edge.bundle.bundle import open_bundle
from mod_edge.commands.app import app
from mod_edge.export import bundle_writer as bundle_module
from mod_edge.export.bundle_writer import export_bundle
from mod_edge.export.engines import build_engines
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.presets import preset_config, write_random_checkpoint
from mod_edge.plan.graph_kind import MOD, VISION
from mod_edge.plan.kv_budget import plan_capacity
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.layout import FRAME
from mod_edge.plan.targets import CPU_FP32, Lowering
from mod_edge.profiles import load_profile
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.cpu.torch_model import TorchModel
from mod_edge.runtime.events import FrameEvent, ReplyEvent
from mod_edge.runtime.open_session import open_session
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import Session
from mod_edge.verification.recording import StepCall
from mod_edge.verification.reference_stream import MAX_FRAMES, MIN_ROLLS, record_stream
from mod_edge.verification.sample_video import SampleVideo
from mod_edge.verification.verify import verify_bundle
from tests.frame_layouts import OTHER_LAYOUTS
from tests.runtime.recorder import Recorder
from tests.runtime.stand_in_model import (
    FRAMES_PER_STEP,
    MAX_STEP_TOKENS,
    linked_copy,
    stand_in_for,
)
from tests.runtime.streams import TEXT_MINIMUM

pytestmark = pytest.mark.numeric

IN_PLACE = Lowering("cuda", "fp32", Rows(dense=260, mod=148))
NUM_LAYERS = 4  # two dense and two MoD layers
NUM_FRAMES = 14  # fewer than make the window roll, which steps of many frames do earlier
every_layout = pytest.mark.parametrize("layout", OTHER_LAYOUTS)
every_dialect = pytest.mark.parametrize("lowering", [CPU_FP32, IN_PLACE], ids=["delta", "in_place"])
QUERIES = (Query("Please narrate the video in real time."), Query("What happens?", 4.2))


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory):
    """`checkpoint_of(layout)`: a small random checkpoint with that frame layout."""

    @functools.cache
    def make(layout):
        folder = tmp_path_factory.mktemp("checkpoint")
        config = preset_config("tiny")
        text = replace(config.text_config, num_hidden_layers=NUM_LAYERS)
        config = OTHER_LAYOUTS[layout](replace(config, text_config=text))
        write_random_checkpoint(config, folder, seed=1)
        return folder

    return make


@pytest.fixture(scope="module")
def bundle_of(checkpoint_of, tmp_path_factory):
    """`bundle_of(layout, lowering)`: its bundle; only layouts' own graphs are traced again."""
    trace, topologies = bundle_module.trace, {}

    def traced_once(config, signature, lowering):
        own = (config.frame_num_tokens,) if signature.kind in (MOD, VISION) else ()
        key = (signature.kind, lowering.dialect, lowering.binds_unused_rows, *own)
        if key not in topologies:
            topologies[key] = trace(config, signature, lowering)
        return topologies[key]

    @functools.cache
    def make(layout, lowering):
        folder = tmp_path_factory.mktemp("bundles") / "bundle"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bundle_module, "trace", traced_once)
            export_bundle(Checkpoint(checkpoint_of(layout)), folder, lowering=lowering)
        return folder

    return make


# Measured on all six layers of the tiny preset, in both dialects: graphs up to 1.9e-6 of 2e-5
# allowed; streams up to 1.6e-5 without CLS and 3.7e-5 with one token, of 1e-3 allowed.
@every_layout
@every_dialect
def test_graphs_and_stream_agree_with_the_reference(checkpoint_of, bundle_of, layout, lowering):
    report = verify_bundle(bundle_of(layout, lowering), checkpoint_of(layout))
    assert report.is_ok
    assert {graph.graph for graph in report.graphs if graph.status == "ok"} >= {
        "vision",
        *(f"layer-0{index}" for index in range(NUM_LAYERS)),
        "head",
    }
    (stream,) = [each for each in report.streams if each.status == "ok"]
    assert stream.num_rolls >= MIN_ROLLS
    assert stream.other_answers == []
    assert stream.num_selections > 0


def test_the_recorded_stream_of_one_token_frames_has_steps_without_text(checkpoint_of):
    checkpoint = Checkpoint(checkpoint_of("one token, no interval"))
    video = SampleVideo(checkpoint.config.stream_config.frame_fps, MAX_FRAMES)
    _, trace = record_stream(checkpoint.load_model(), checkpoint.tokenizer, video, CPU_FP32)
    pieces = {call.pieces for call in trace.calls if isinstance(call, StepCall)}
    assert (FRAME, FRAME, FRAME) in pieces


def test_golden_files_of_one_token_frames_hold_without_the_checkpoint(
    checkpoint_of, bundle_of, tmp_path
):
    layout = "one token, no interval"
    bundle, golden = str(bundle_of(layout, CPU_FP32)), str(tmp_path / "golden")
    options = ["--checkpoint", str(checkpoint_of(layout)), "--save-golden", golden]
    saved = CliRunner().invoke(app, ["verify", bundle, *options])
    assert saved.exit_code == 0, saved.output
    result = CliRunner().invoke(app, ["verify", bundle, "--golden", golden, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["ok"] is True


# ---- sessions ----


def answers(session):
    """The decisions and replies of a session over a synthetic video."""
    fps = session.config.stream_config.frame_fps
    found = []
    for event in session.stream(SampleVideo(fps, NUM_FRAMES), QUERIES):
        if isinstance(event, FrameEvent):
            found.append(event.decision.value)
        elif isinstance(event, ReplyEvent):
            found.append(tuple(event.token_ids))
    return found


@every_layout
@every_dialect
def test_a_bundle_says_what_its_checkpoint_says(checkpoint_of, bundle_of, layout, lowering):
    bundle = bundle_of(layout, lowering)
    options = {"threshold": 0.3, "max_new_tokens": 8}
    given = {"backend": "torch", "checkpoint": checkpoint_of(layout)}
    with open_session(bundle, **options, **given, frames_per_step=1) as session:
        wanted = answers(session)
        assert not session.summary().num_rolls
    assert {"silent", "speak"} <= set(wanted)
    for frames_per_step in (1, 3):
        with open_session(
            bundle, **options, backend="onnx", device="cpu", frames_per_step=frames_per_step
        ) as session:
            assert answers(session) == wanted


# ---- engines ----


@pytest.mark.parametrize("target", ["tensorrt-delta", "rtx"])
def test_engines_take_steps_without_text(checkpoint_of, bundle_of, tmp_path, target):
    """Each input lies within its engine's ranges, and the host binds inputs without rows."""
    layout = "one token, no interval"
    capacity = IN_PLACE.capacity if target == "rtx" else None
    bundle = bundle_of(layout, Lowering(target, "fp32", capacity))
    machine = stand_in_for(linked_copy(bundle, tmp_path / "bundle"))
    machine.build()
    options = SessionOptions(0.3, 8, FRAMES_PER_STEP, MAX_STEP_TOKENS, 0.125)
    plan = plan_capacity(machine.config, machine.limits.capacity, TEXT_MINIMUM, dtype="float32")
    reference = TorchModel(Checkpoint(checkpoint_of(layout)).load_model())
    said = []
    for state in (machine.open(), reference.open_stream()):
        recorder = Recorder(state)
        with Session(recorder, machine.config, machine.bundle.tokenizer, plan, options) as session:
            said.append(answers(session))
        assert any(set(pieces) == {FRAME} for pieces, *_ in recorder.steps)
    machine.close()
    assert said[0] == said[1]


def test_tensorrt_compiles_a_mod_layer_that_takes_steps_without_text(checkpoint_of, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    checkpoint = Checkpoint(checkpoint_of("one token, no interval"))
    lowering = Lowering("rtx", "fp16", IN_PLACE.capacity)
    export_bundle(checkpoint, tmp_path / "bundle", lowering=lowering, layers=[1])
    report = build_engines(
        open_bundle(tmp_path / "bundle"), load_profile("rtx-ada"), compute_capability="89"
    )
    assert {graph.name for graph in report.graphs if graph.is_built} >= {"layer-01", "vision"}
