"""Engines of the real compiler on a real GPU, compared with ONNX Runtime on the CPU."""

import numpy as np
import pytest

from mod_edge.bundle.bundle import open_bundle
from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.plan.layout import FRAME
from mod_edge.runtime.cpu.onnx_model import OnnxModel
from mod_edge.runtime.device import step_chain
from tests.runtime.stand_in_model import Feeder

BUNDLES = (
    ("rtx", "fp32"),
    ("rtx", "fp16"),
    ("tensorrt", "fp32"),
    ("tensorrt", "fp16"),
    ("tensorrt-delta", "fp32"),
)
# Logits go up to 30. Estimates, not measured on a GPU yet: other kernels add in another order.
ATOL_LOGITS = {"fp32": 1e-2, "fp16": 0.5}
SINK = Rows(8, 8)

every_bundle = pytest.mark.parametrize(("target", "precision"), BUNDLES)


def run_script(stream, config, num_rounds=8):
    """All logits of the script."""
    return np.concatenate(list(script(stream, config, num_rounds)))


def script(stream, config, num_rounds, seed=0):
    """Logits of a prefill, frames one by one and together, replies, and rolls in between."""
    generator = np.random.default_rng(seed)
    side = config.vision_config.image_size
    frames = generator.integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    feeder = Feeder(stream, config)
    yield feeder.feed((8,), list(range(5, 13)))
    num_evicted = 0
    for number in range(num_rounds):
        embeds = stream.encode(frames)
        yield feeder.feed((1, FRAME), [number + 20], embeds[:1])
        yield feeder.feed((1, FRAME, 1, FRAME), [number + 30, 40], embeds[1:])
        for token in (50, 60):
            yield feeder.feed((1,), [number + token])
        if number % 2:
            dropped = Rows(2 * (config.frame_num_tokens + 1), 2 * (config.num_kept + 1))
            num_evicted += dropped.dense
            feeder.evict(Eviction(SINK, dropped, feeder.past, num_evicted))


@every_bundle
def test_logits_equal_onnx_runtimes(open_stream, engines_for, bundle_for, target, precision):
    stream, config = open_stream(target, precision)
    bundle, limits = engines_for(target, precision)
    in_place = target != "tensorrt-delta"
    onnx_bundle = open_bundle(bundle_for("cuda", precision)) if in_place else bundle
    reference = OnnxModel(onnx_bundle, limits).open_stream()
    ours, theirs = run_script(stream, config), run_script(reference, config)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ATOL_LOGITS[precision])


@every_bundle
def test_repeated_steps_run_as_cuda_graphs(open_stream, target, precision):
    stream, config = open_stream(target, precision)
    run_script(stream, config)
    counts = stream._chain.counts
    assert counts.refused == 0
    assert min(counts.captured, counts.launched) > 0
    assert stream.warnings == []


@every_bundle
def test_cuda_graphs_change_no_bit(open_stream, monkeypatch, target, precision):
    results = []
    for has_room in (True, False):
        monkeypatch.setattr(step_chain.StepChain, "_make_room", lambda _self, has=has_room: has)
        results.append(run_script(*open_stream(target, precision)))
    np.testing.assert_array_equal(*results)


@every_bundle
def test_two_streams_by_turns_give_what_each_gives_alone(load_device_model, target, precision):
    seeds = (0, 1)
    model = load_device_model(target, precision)
    with model.open_stream() as first, model.open_stream() as second:
        running = [
            script(stream, model.config, 8, seed)
            for stream, seed in zip((first, second), seeds, strict=True)
        ]
        together = zip(*zip(*running, strict=True), strict=True)
        ours = [np.concatenate(logits) for logits in together]
    for logits, seed in zip(ours, seeds, strict=True):
        own_model = load_device_model(target, precision)
        with own_model.open_stream() as alone:
            theirs = np.concatenate(list(script(alone, own_model.config, 8, seed)))
        np.testing.assert_array_equal(logits, theirs)  # the same kernels on the same shapes


@every_bundle
def test_closed_models_leave_no_memory_allocated(load_device_model, driver, target, precision):
    free = []
    for _ in range(3):
        with load_device_model(target, precision) as model, model.open_stream() as stream:
            run_script(stream, model.config, num_rounds=2)
        free.append(driver._cudart.cudaMemGetInfo()[1])
    assert free[2] > free[1] - 2**20  # the first may leave what CUDA keeps for the process


@every_bundle
def test_closed_streams_on_a_model_leave_no_memory_allocated(
    load_device_model, driver, target, precision
):
    free = []
    with load_device_model(target, precision) as model:
        for _ in range(3):
            with model.open_stream() as stream:
                run_script(stream, model.config, num_rounds=2)
            free.append(driver._cudart.cudaMemGetInfo()[1])
    assert free[2] > free[1] - 2**20  # the first may leave what CUDA keeps for the process
