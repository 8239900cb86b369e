"""The bench of a bundle: its rows, its document, and what it leaves out."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from mod_edge.bench.bench import BenchOptions, bench_bundle
from mod_edge.bench.report import LeftOut
from mod_edge.bench.step_work import BundleWork
from mod_edge.bench.steps import BenchStream
from mod_edge.bundle.bundle import open_bundle
from mod_edge.errors import ConfigError
from mod_edge.plan.costs import compare_with_full
from mod_edge.plan.kv_budget import cache_bytes
from mod_edge.plan.kv_window import Rows
from mod_edge.profiles import load_profile
from mod_edge.runtime.cpu.onnx_model import OnnxModel
from mod_edge.runtime.loaded_model import StreamLimits, WrappedStream
from tests.bench.conftest import WINDOW

STEPS = ["step, text token", "step, 1 frame", "step, 2 frames", "step, 5 frames"]
PROFILE = """
targets = ["cpu"]
precision = "fp32"
window = "400"
frames_per_step = { min = 1, opt = 1, max = MOST_FRAMES }
max_step_tokens = MOST_TOKENS
max_new_tokens = 20
"""


def profile_file(folder, *, most_frames, most_tokens):
    path = folder / "narrow.toml"
    text = PROFILE.replace("MOST_FRAMES", str(most_frames))
    path.write_text(text.replace("MOST_TOKENS", str(most_tokens)))
    return path


def plain(names):
    """Names without the numbers that the tiny preset decides."""
    return [re.sub(r", query of \d+", "", name) for name in names]


def test_every_part_of_a_stream_has_a_row_at_every_fill_of_the_window(report):
    small, full = sorted({row.num_past for row in report.rows} - {None, 0, 400})
    assert small == 60
    assert full == 400 - 55  # a step of five frames of 10 tokens, each after an interval
    at_fill = [*STEPS, "whole frame", "first token", "reply, 20 tokens"]
    assert [(name, row.num_past) for name, row in zip(
        plain(row.name for row in report.rows), report.rows, strict=True
    )] == [
        ("preprocessing, 640x480", None),
        ("vision, 1 frame", None),
        ("vision, 5 frames", None),
        ("prefill, 256 tokens", 0),
        ("head, 1 row", None),
        *((name, small) for name in at_fill),
        *((name, full) for name in at_fill),
        ("roll", 400),
    ]  # fmt: skip


def test_a_roll_ends_when_the_device_has_rolled(tiny_bundle):
    """Reading what the last step kept waits for all work before it."""
    calls = []

    class Watched(WrappedStream):
        def evict(self, eviction):
            calls.append("evict")
            super().evict(eviction)

        @property
        def kept(self):
            calls.append("kept")
            return super().kept

    bundle, capacity = open_bundle(tiny_bundle), Rows(200, 200)
    limits = StreamLimits(capacity, 64, 1)
    profile = replace(load_profile("cpu"), max_step_tokens=64)
    with OnnxModel(bundle, limits) as model, model.open_stream() as state:
        work = BundleWork(bundle, bundle.config, 0)
        stream = BenchStream(
            Watched(state), bundle.config, bundle.tokenizer, profile, capacity, work, 1
        )
        calls.clear()
        stream.roll_case().action()
    assert calls == ["evict", "kept"]


def test_the_bench_needs_no_onnxruntime_where_engines_run():
    code = "import sys; sys.modules['onnxruntime'] = None; import mod_edge.bench.bench"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_decoder_rows_stand_beside_full_computation_and_its_counted_cost(report, tiny_bundle):
    compared = [row for row in report.rows if row.beside_full is not None]
    assert {row.name for row in compared} >= {*STEPS, "whole frame", "reply, 20 tokens"}
    steps = [row for row in compared if row.name in STEPS]
    assert all(0 < row.beside_full.counted < 1 for row in steps)
    # A text token of MoD saves attention alone, a frame most of its rows.
    by_name = {row.name: row.beside_full.counted for row in steps}
    assert by_name["step, 1 frame"] < by_name["step, text token"]
    mean = compare_with_full(open_bundle(tiny_bundle).config, 30, has_interval=True).flops_ratio
    assert by_name["step, 1 frame"] == pytest.approx(mean, abs=0.1)


def test_every_decoder_row_has_a_positive_lower_bound(report):
    bounded = [row for row in report.rows if not row.name.startswith(("preprocessing", "roll"))]
    assert all(row.least_ms > 0 and math.isfinite(row.reached) for row in bounded)
    assert report.ceilings.bytes_per_s > 0


def test_the_bytes_of_keys_and_values_are_those_of_the_plan(report, tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    profile = bundle.profile()
    plan = bundle.plan(profile.window, profile.max_new_tokens, window=WINDOW)
    window = report.window
    assert (window.num_tokens, window.num_mod_rows) == plan.capacity
    assert window.kv_bytes == plan.size_bytes
    dense = cache_bytes(bundle.config, Rows(400, 400), bundle.lowering.dtype)
    assert window.full_kv_bytes == dense > window.kv_bytes


def test_the_document_holds_every_row_and_is_json(report):
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert [row["name"] for row in document["rows"]] == [row.name for row in report.rows]
    assert len({frozenset(row) for row in document["rows"]}) == 1
    assert document["format_version"] == 1
    assert document["numbers"] == "fp32"
    assert document["device"]["num_threads"] == 1
    assert document["weight_bytes"] > 0
    assert document["rolling"]["every_frames"] > 0


def test_only_rows_that_run_graphs_say_how_much_is_outside_them(report):
    shares = {row.name: row.timing.outside_graphs for row in report.rows}
    assert shares["preprocessing, 640x480"] is None
    assert shares["roll"] is None
    assert 0 <= shares["step, 1 frame"] < 1


def test_steps_of_more_frames_than_the_profile_allows_are_left_out_with_the_reason(report):
    assert report.left_out == (LeftOut("step, 10 frames", "profile cpu allows 8 frames per step"),)


def test_a_profile_of_one_frame_leaves_the_others_out(tiny_bundle, quick, tmp_path):
    profile = profile_file(tmp_path, most_frames=1, most_tokens=25)
    options = BenchOptions(profile=profile, seconds=0.01)
    report = bench_bundle(tiny_bundle, options)
    names = {row.name for row in report.rows}
    assert {name for name in names if name.startswith("step")} == {STEPS[0], STEPS[1]}
    assert "vision, 1 frame" in names
    assert [each.what for each in report.left_out] == [
        *("step, 2 frames", "step, 5 frames", "step, 10 frames", "several streams"),
    ]
    reasons = ("profile narrow allows 1 frame per step", "profile narrow encodes 1 frame at once")
    assert {each.reason for each in report.left_out} == set(reasons)
    assert report.streams == ()


def test_one_two_and_four_streams_follow_the_rows(report):
    assert [(row.num_streams, row.num_past) for row in report.streams] == [
        (1, 60),
        (2, 60),
        (4, 60),
    ]


def test_a_profile_without_room_for_a_frame_is_an_error(tiny_bundle, tmp_path):
    profile = profile_file(tmp_path, most_frames=2, most_tokens=7)
    with pytest.raises(ConfigError, match="one frame is not possible: 11 tokens, profile narrow"):
        bench_bundle(tiny_bundle, BenchOptions(profile=profile))


def test_the_reference_is_no_backend_of_a_bench():
    with pytest.raises(ConfigError, match="not the PyTorch reference; take backend auto"):
        BenchOptions(backend="torch")


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan, math.inf])
def test_a_time_that_is_none_is_an_error_before_anything_is_measured(seconds):
    with pytest.raises(ConfigError, match=f"seconds={seconds:g}, wanted a number above 0"):
        BenchOptions(seconds=seconds)
