"""The bench of a bundle on a GPU, with stand-ins for the driver and for TensorRT.

Times mean nothing here; the driver's calls are those that a real GPU would get.
"""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from mod_edge.bench import bench, several_streams
from mod_edge.bench.bench import BenchOptions, bench_bundle
from mod_edge.bench.full_computation import full_computation_model
from mod_edge.bundle.bundle import open_bundle
from mod_edge.bundle.shape_ranges import StepLimits
from mod_edge.commands.bench_view import print_bench
from mod_edge.native.device_calls import DeviceCalls
from mod_edge.plan.kv_budget import cache_bytes
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.layout import step_layout
from mod_edge.runtime.cpu.onnx_model import OnnxModel
from mod_edge.runtime.loaded_model import StreamLimits
from tests.native.stand_in_driver import CACHE_BYTES
from tests.runtime.stand_in_model import linked_copy, stand_in_for

pytestmark = pytest.mark.numeric

TARGET = "rtx"
# The same graphs on the same values at other addresses: measured 0, logits up to 9.6. With MoD
# layers left in place they differ by 3.9.
ATOL_LOGITS = 1e-3
PROFILE = """
targets = ["rtx", "tensorrt-delta"]
compute_capabilities = ["89"]
precision = "fp32"
window = "260"
frames_per_step = { min = 1, opt = 1, max = 4 }
max_step_tokens = 64
max_new_tokens = 20
"""


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "narrow.toml"
    path.write_text(PROFILE)
    return path


@pytest.fixture(scope="module")
def folder_for(bundle_for, tmp_path_factory):
    """`folder_for(target)`: a bundle that can get engines of the stand-in."""
    folder = tmp_path_factory.mktemp("bench")
    return cache(lambda target: linked_copy(bundle_for(target, "fp32"), folder / target))


@pytest.fixture(scope="module")
def bundle(folder_for):
    return open_bundle(folder_for(TARGET))


def machine_for(folder, capacity, **memory):
    """A machine with engines for steps as in `PROFILE`."""
    machine = stand_in_for(folder, **memory)
    machine.limits = StreamLimits(capacity, max_step_tokens=64, frames_per_step=4)
    machine.build(limits=StepLimits(64, 1, 4, capacity))
    return machine


def bench_on_gpu(folder, profile, **memory):
    bundle = open_bundle(folder)
    defaults = bundle.profile(profile)
    plan = bundle.plan(defaults.window, defaults.max_new_tokens, window=None, kv_budget_mib=None)
    machine = machine_for(folder, plan.capacity, **memory)

    def load_model(_bundle, limits, _choice):
        machine.limits = limits
        return machine.load(), "a stand-in"

    with pytest.MonkeyPatch.context() as patch:
        for module in (bench, several_streams):
            patch.setattr(module, "load_model", load_model)
        report = bench_bundle(folder, BenchOptions(profile=profile, seconds=0.01))
    assert machine.cudart.num_live == 0
    return report


@pytest.fixture(scope="module")
def report(folder_for, profile, quick):
    return bench_on_gpu(folder_for(TARGET), profile)


def calls_of(report, name):
    return next(row.device_calls for row in report.rows if row.name == name)


def test_a_step_is_one_graph_and_waits_for_nothing_inside(report):
    """After the step, reading the kept tokens is one download and one wait."""
    result = DeviceCalls(downloads=1, waits=1)
    step = DeviceCalls(uploads=1, upload_waits=1, graph_launches=1)
    # One copy for each run of text and each frame, from the step's inputs to the hidden states.
    text = replace(step, copies=1)
    assert calls_of(report, "step, text token").since(result) == text
    assert calls_of(report, "step, 2 frames").since(result) == replace(step, copies=4)


def test_every_step_has_its_graph_where_shapes_grow_with_the_past(folder_for, profile, quick):
    """A delta step binds a bucket of the past: every fill of the window has shapes of its own."""
    delta = bench_on_gpu(folder_for("tensorrt-delta"), profile)
    steps = [row for row in delta.rows if row.name.startswith(("step", "first token"))]
    assert len({row.num_past for row in steps}) == 2
    assert {row.device_calls.graph_launches for row in steps} == {1}
    assert {row.device_calls.allocations for row in delta.rows} == {0}


def test_rows_without_a_gpu_make_no_calls(report):
    assert calls_of(report, "preprocessing, 640x480") == DeviceCalls()


def test_decoder_rows_stand_beside_full_computation(report):
    beside = {row.name: row.beside_full for row in report.rows if row.beside_full}
    assert {"step, text token", "step, 2 frames", "whole frame"} <= set(beside)
    assert 0 < beside["step, 1 frame"].counted < 1


def test_full_computation_on_the_gpu_computes_what_it_does_on_the_cpu(bundle, bundle_for):
    capacity, num_tokens = bundle.lowering.capacity, bundle.config.frame_num_tokens
    machine = machine_for(bundle.folder, capacity)
    layout = step_layout((3,), num_tokens, num_tokens)

    def logits_of(model):
        with model, full_computation_model(model, bundle.config, capacity).open_stream() as stream:
            for past in (0, 3):
                stream.step(layout, [5, 6, 7], None, position=past, past=Rows(past, past))
            return stream.logits([2]).copy()

    # ONNX Runtime rejects an attribute that TensorRT requires: the same graphs without it.
    reference = OnnxModel(open_bundle(bundle_for("cuda", "fp32")), machine.limits)
    ours = logits_of(machine.load())
    np.testing.assert_allclose(ours, logits_of(reference), atol=ATOL_LOGITS)


def test_memory_on_the_gpu_holds_the_cache(report, bundle):
    kv_bytes = cache_bytes(bundle.config, bundle.lowering.capacity, "float32")
    assert report.window.kv_bytes == kv_bytes
    assert report.device_memory_bytes > kv_bytes
    further = [row.stream_bytes for row in report.streams if row.num_streams > 1]
    assert all(size >= kv_bytes for size in further)


def test_bounds_come_from_the_memory_of_the_gpu(report):
    assert report.ceilings.cache_bytes == CACHE_BYTES
    assert report.ceilings.float_flops_per_s is None
    assert all(row.least_ms > 0 for row in report.rows if row.name.startswith("step"))


def test_the_document_is_json_and_the_view_has_a_table_of_calls(report, capsys):
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    row = next(row for row in document["rows"] if row["name"] == "step, text token")
    assert row["device_calls"]["graph_launches"] == 1
    print_bench(report)
    printed = capsys.readouterr().out
    assert "CUDA graphs" in printed
    assert "the host did not wait for the GPU" in printed


def test_what_is_outside_the_graphs_is_time_without_waiting(report):
    """The stand-in computes while the host waits, and nothing before."""
    shares = {row.name: row.timing.outside_graphs for row in report.rows}
    assert shares["preprocessing, 640x480"] is None
    assert 0 < shares["step, 1 frame"] < 0.9


def test_without_memory_for_further_caches_what_needs_them_is_left_out(
    report, folder_for, profile, quick
):
    enough_for_one = report.device_memory_bytes + report.window.full_kv_bytes // 2
    short = bench_on_gpu(folder_for(TARGET), profile, memory_bytes=enough_for_one)
    reasons = {each.what: each.reason for each in short.left_out}
    for what in ("full computation", "several streams", "ceilings"):
        assert "Stand-in GPU has no" in reasons[what]
    assert [row.name for row in short.rows] == [row.name for row in report.rows]
    assert all(row.least_ms is None and row.beside_full is None for row in short.rows)
    print_bench(short)
