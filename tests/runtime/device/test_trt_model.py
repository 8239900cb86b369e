"""A stream on engines: calls per step, bounds, memory, and engines that do not match."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from mod_edge.bundle.engine_manifest import write_engine_manifest
from mod_edge.bundle.manifest import record_file
from mod_edge.errors import BackendError, CacheError
from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.plan.layout import FRAME, step_layout
from tests.native.stand_in_driver import Error
from tests.runtime.stand_in_model import Feeder, stand_in_for

BUNDLES = (("tensorrt-delta", "fp32"), ("rtx", "fp16"))
UPLOADS = "cudaMemcpyAsync cudaMemcpyHostToDevice"
DOWNLOADS = "cudaMemcpyAsync cudaMemcpyDeviceToHost"
COPIES = "cudaMemcpyAsync cudaMemcpyDeviceToDevice"
WAITS = "cudaStreamSynchronize"


@pytest.fixture(params=BUNDLES, ids="-".join)
def machine(request, make_machine):
    return make_machine(*request.param)


@pytest.fixture
def in_place(make_machine):
    return make_machine("rtx", "fp16")


@pytest.fixture
def stream(machine):
    return machine.open()


@pytest.fixture
def feeder(stream, machine):
    return Feeder(stream, machine.config)


def frames_of(config, num_frames, seed=0):
    side = config.vision_config.image_size
    shape = (num_frames, side, side, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def calls_of(machine, work, *arguments):
    """The CUDA calls of `work`, without those for events."""
    before = machine.cudart.calls.copy()
    work(*arguments)
    calls = machine.cudart.calls - before
    for name in ("cudaEventRecord", "cudaEventSynchronize"):
        calls.pop(name, None)
    return dict(calls)


def test_frames_encoded_together_equal_frames_encoded_one_by_one(stream, machine):
    frames = frames_of(machine.config, 3)
    size = machine.config.frame_num_tokens * machine.config.text_config.hidden_size
    dtype = machine.bundle.lowering.dtype

    def values(embeds):
        return machine.cudart.read(embeds.address, (len(embeds), size), dtype)

    together = values(stream.encode(frames)[1:3])
    for number in (1, 2):
        alone = values(stream.encode(frames[number : number + 1]))
        np.testing.assert_allclose(alone[0], together[number - 1], rtol=0, atol=1e-2)


# ---- CUDA calls ----


def test_a_step_is_one_upload_and_one_copy_per_piece_without_waiting(feeder, machine):
    embeds = feeder.stream.encode(frames_of(machine.config, 3))
    is_delta = machine.bundle.lowering.dialect == "delta"
    appends = 2 * machine.config.text_config.num_hidden_layers if is_delta else 0
    steps = [((1, FRAME), [5], embeds[:1], 2), ((1, FRAME, 2, FRAME), [5, 6, 7], embeds[1:], 4)]
    for pieces, ids, frames, num_pieces in steps:
        calls = calls_of(machine, feeder.step, pieces, ids, frames)
        assert calls == {UPLOADS: 1, COPIES: num_pieces + appends}


def test_a_repeated_step_is_one_launch(feeder, machine):
    for number in range(4):
        feeder.feed((2,), [5, 6])
        calls = calls_of(machine, lambda: feeder.step((1,), [7]))
        feeder.stream.logits([0])
        assert calls.get("cudaGraphLaunch", 0) == (number >= 2)
        assert WAITS not in calls


def test_logits_wait_once_and_download_once(feeder, machine):
    feeder.feed((4,), [5, 6, 7, 8])
    calls = calls_of(machine, lambda: feeder.stream.logits([1, 3]))
    assert calls == {COPIES: 2, DOWNLOADS: 1, WAITS: 1}


def test_encode_waits_once_so_that_its_time_can_be_measured(stream, machine):
    frames = frames_of(machine.config, 2)
    assert calls_of(machine, lambda: stream.encode(frames)) == {UPLOADS: 1, WAITS: 1}


def test_selections_stay_on_the_device_until_they_are_read(feeder, machine):
    embeds = feeder.stream.encode(frames_of(machine.config, 1))
    feeder.feed((1, FRAME), [5], embeds)
    asked = calls_of(machine, lambda: feeder.stream.kept)
    assert asked == {DOWNLOADS: 1, WAITS: 1}
    kept = feeder.stream.kept
    assert kept.keys() == set(machine.config.mod_layers)
    for positions in kept.values():
        assert positions.shape == (1, machine.config.num_kept)
        assert (np.diff(positions) > 0).all()
    feeder.feed((1,), [5])
    assert all(len(positions) == 0 for positions in feeder.stream.kept.values())


def test_the_host_waits_in_a_step_only_when_uploads_pile_up(feeder, machine):
    cudart = machine.cudart
    for _ in range(3):
        feeder.feed((1,), [5])
    assert cudart.num_blocking_waits == 0
    for _ in range(4):  # a prefill in pieces, without reading logits
        feeder.step((3,), [5, 6, 7])
    assert cudart.num_blocking_waits == 2


def test_steps_allocate_no_memory(feeder, machine):
    embeds = feeder.stream.encode(frames_of(machine.config, 3))
    steps = [((1, FRAME), [5], embeds[:1]), ((1,), [6], None)]
    for _ in range(3):  # captures make contexts
        for step in steps:
            feeder.feed(*step)
    live, calls = machine.cudart.num_live, machine.cudart.calls.copy()
    tracemalloc.start()
    for step in steps:
        feeder.feed(*step)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    taken = machine.cudart.calls - calls
    assert not {"cudaMalloc", "cudaHostAlloc", "cudaEventCreateWithFlags"} & taken.keys()
    assert machine.cudart.num_live == live
    # measured 5.2 and 9.9 kB, including the stand-in's; a copy of one layer's keys alone would be
    # 8 to 33 kB, of the logits another 6 kB
    assert peak_bytes < 16_000


# ---- bounds ----


def test_a_step_out_of_bounds_is_a_cache_error_and_writes_nothing(feeder, machine):
    feeder.feed((3,), [5, 6, 7])
    dense, mod = feeder.stream._cache.capacity
    calls = machine.cudart.calls.copy()

    def step(num_tokens, past):
        layout = step_layout((num_tokens,), machine.config.frame_num_tokens, 1)
        feeder.stream.step(layout, [1] * num_tokens, None, position=9, past=past)

    for num_tokens, past in ((4, Rows(dense - 3, 0)), (4, Rows(0, mod - 3)), (65, Rows(0, 0))):
        says = rf"a step of {num_tokens} tokens .* after {past.dense} \({past.mod}\) does not fit"
        with pytest.raises(CacheError, match=says):
            step(num_tokens, past)
    assert machine.cudart.calls == calls
    step(4, Rows(dense - 4, mod - 4))


def test_a_frame_taken_back_leaves_no_trace(machine):
    results = []
    for takes_back in (True, False):
        feeder = Feeder(machine.open(), machine.config)
        embeds = feeder.stream.encode(frames_of(machine.config, 3))
        feeder.feed((3, FRAME), [5, 6, 7], embeds[:1])
        if takes_back:
            past, position = feeder.past, feeder.position
            feeder.feed((1, FRAME, 1, FRAME), [8, 8], embeds[1:])
            feeder.past, feeder.position = past, position
        results.append(feeder.feed((4,), [9, 10, 11, 12]))
    np.testing.assert_array_equal(*results)


# ---- closing and failing ----


def test_close_frees_everything_and_can_be_called_twice(machine):
    model = machine.load()
    num_live = machine.cudart.num_live
    stream = model.open_stream()
    feeder = Feeder(stream, machine.config)
    for _ in range(3):
        feeder.feed((2,), [5, 6])
    stream.evict(Eviction(Rows(2, 2), Rows(2, 2), feeder.past, num_evicted=2))
    stream.step(*step_of(machine), position=8, past=Rows(4, 4))  # still running
    stream.close()
    stream.close()
    assert machine.cudart.num_live == num_live
    model.close()
    model.close()
    assert machine.cudart.num_live == 0


def step_of(machine):
    layout = step_layout((2,), machine.config.frame_num_tokens, machine.config.num_kept)
    return layout, [5, 6], None


def test_logits_outlive_the_model(machine):
    with machine.load() as model, model.open_stream() as stream:
        feeder = Feeder(stream, machine.config)
        feeder.step((2,), [5, 6])
        logits = stream.logits([1])
        copy = logits.copy()
    np.testing.assert_array_equal(logits, copy)


def open_and_close(machine):
    """Load the model and open a stream; a stream that fails must free its memory."""
    with machine.load() as model:
        num_live = machine.cudart.num_live
        try:
            model.open_stream().close()
        finally:
            assert machine.cudart.num_live == num_live


@pytest.mark.parametrize(
    "name",
    ["cudaMalloc", "cudaHostAlloc", "cudaMemsetAsync", "cudaEventCreateWithFlags"],
)
def test_a_failure_at_the_start_leaves_nothing_allocated(machine, name):
    machine.open()
    num_calls = machine.cudart.calls[name]
    assert num_calls > 3
    for number in (1, num_calls // 2, num_calls):
        fails = stand_in_for(machine.bundle.folder)
        fails.cudart.fail_at[name] = number
        with pytest.raises(BackendError, match=f"{name} returned cudaErrorIllegalAddress"):
            open_and_close(fails)
        assert fails.cudart.num_live == 0


def test_a_failing_step_is_a_backend_error_with_cudas_error_name(feeder, machine):
    feeder.feed((2,), [5, 6])
    machine.cudart.failures["cudaMemcpyAsync"] = Error.cudaErrorIllegalAddress
    with pytest.raises(BackendError, match="cudaMemcpyAsync returned cudaErrorIllegalAddress"):
        feeder.feed((2,), [5, 6])


def test_too_little_gpu_memory_is_a_cache_error(machine):
    small = stand_in_for(machine.bundle.folder, memory_bytes=200_000)
    with pytest.raises(CacheError, match=r"Stand-in GPU has no .* MiB left for the KV cache"):
        open_and_close(small)
    assert small.cudart.num_live == 0


def feed_until_it_fails(machine):
    """Feed steps until the GPU fails, and fails every later call."""
    names = ("cudaMemcpyAsync", "cudaStreamSynchronize", "cudaGraphExecDestroy", "cudaFree")
    with machine.load() as model, model.open_stream() as stream:
        feeder = Feeder(stream, machine.config)
        for _ in range(3):  # the third is a graph
            feeder.feed((2,), [5, 6])
        machine.cudart.failures |= dict.fromkeys(names, Error.cudaErrorIllegalAddress)
        feeder.feed((2,), [5, 6])


def test_closing_after_a_failure_does_not_hide_it(machine):
    with pytest.raises(BackendError, match="cudaMemcpyAsync returned cudaErrorIllegalAddress"):
        feed_until_it_fails(machine)
    assert machine.cudart.num_live == 0


# ---- engines that do not match their manifest ----


def load_with(machine, name, change):
    """Load the model with `change` applied to an engine's file, and its new hash in the manifest.

    Every machine builds the engines again.
    """
    engines = machine.build()
    path = machine.bundle.folder / engines.settings.folder / f"{name}.engine"
    path.write_text(change(path.read_text()))
    file = record_file(path)
    record = replace(engines.engines[name], sha256=file.sha256, size_bytes=file.size_bytes)
    records = {**engines.engines, name: record}
    write_engine_manifest(replace(engines, engines=records), machine.bundle.folder)
    try:
        machine.load()
    finally:
        assert machine.cudart.num_live == 0


def copying_its_values(text):
    data = json.loads(text)
    del data["aliases"]["present_value"]
    return json.dumps(data)


def with_two_profiles(text):
    data = json.loads(text)
    data["profiles"].pop()
    return json.dumps(data)


def of_a_dense_layer(text):
    return text.replace("01.onnx", "00.onnx")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (copying_its_values, "it copies the cache instead of writing 'present_value' into 'past_v"),
        (with_two_profiles, "it has 2 optimization profiles, wanted 3"),
        (of_a_dense_layer, "it has no 'text_index'"),
    ],
)
def test_an_engine_that_does_not_match_its_signature_is_an_error(in_place, change, fault):
    says = rf"layer-01\.engine does not match its manifest: .*{fault}.*; remove .* and build again"
    with pytest.raises(BackendError, match=says):
        load_with(in_place, "layer-01", change)


def test_an_engine_that_does_not_load_is_an_error_with_tensorrts_message(in_place):
    says = r"TensorRT-RTX 1\.7\.1\.116 cannot load .*head\.engine: Serialization error: magic"
    with pytest.raises(BackendError, match=says):
        load_with(in_place, "head", lambda _text: "not an engine")
