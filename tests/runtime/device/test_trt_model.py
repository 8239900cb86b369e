"""A stream on engines by itself: what a step costs, bounds, memory, and engines that do not fit."""

import json
import tracemalloc

import numpy as np
import pytest

from mod_edge.errors import BackendError, CacheError
from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.plan.layout import FRAME, step_layout
from mod_edge.runtime.device.trt_model import load_trt_model
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
    """What the device is asked for by `work`, without what only marks the stream."""
    before = machine.cudart.calls.copy()
    work(*arguments)
    calls = machine.cudart.calls - before
    for marks in ("cudaEventRecord", "cudaEventSynchronize"):
        calls.pop(marks, None)
    return dict(calls)


# ---- what it is ----


def test_its_name_says_version_device_and_precision(in_place):
    name = "tensorrt (TensorRT-RTX 1.7.1.116, Stand-in GPU, fp16)"
    assert in_place.open().name == name


def test_frames_are_encoded_one_by_one_or_together(stream, machine):
    frames = frames_of(machine.config, 3)
    size = machine.config.frame_num_tokens * machine.config.text_config.hidden_size
    dtype = machine.bundle.lowering.dtype

    def values(embeds):
        return machine.cudart.read(embeds.address, (len(embeds), size), dtype)

    together = values(stream.encode(frames)[1:3])
    for number in (1, 2):
        alone = values(stream.encode(frames[number : number + 1]))
        np.testing.assert_allclose(alone[0], together[number - 1], rtol=0, atol=1e-2)


# ---- what a step costs ----


def test_a_step_is_one_upload_and_a_copy_a_piece_and_waits_for_nothing(feeder, machine):
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


def test_logits_wait_once_and_load_down_once(feeder, machine):
    feeder.feed((4,), [5, 6, 7, 8])
    calls = calls_of(machine, lambda: feeder.stream.logits([1, 3]))
    assert calls == {COPIES: 2, DOWNLOADS: 1, WAITS: 1}


def test_encoding_waits_once_so_that_its_time_is_its_own(stream, machine):
    frames = frames_of(machine.config, 2)
    assert calls_of(machine, lambda: stream.encode(frames)) == {UPLOADS: 1, WAITS: 1}


def test_selections_stay_on_the_device_until_they_are_asked_for(feeder, machine):
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


def test_the_host_waits_in_no_step_of_a_stream_but_where_uploads_pile_up(feeder, machine):
    cudart = machine.cudart
    for _ in range(3):
        feeder.feed((1,), [5])
    assert cudart.num_blocking_waits == 0
    for _ in range(4):  # a prefill in pieces: nobody asks for logits between
        feeder.step((3,), [5, 6, 7])
    assert cudart.num_blocking_waits == 2


def test_steps_take_no_memory(feeder, machine):
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
    # measured 5.2 and 9.9 kB, the stand-in's own included; a copy of one layer's keys alone would
    # be 8 to 33 kB, of the logits another 6 kB
    assert peak_bytes < 16_000


# ---- bounds ----


def test_a_step_behind_a_full_cache_is_a_cache_error_and_writes_nothing(feeder, machine):
    feeder.feed((3,), [5, 6, 7])
    dense, mod = feeder.stream._cache.capacity
    layout = step_layout((4,), machine.config.frame_num_tokens, machine.config.num_kept)
    calls = machine.cudart.calls.copy()
    for past in (Rows(dense - 3, 0), Rows(0, mod - 3)):
        with pytest.raises(
            CacheError,
            match=rf"a step of 4 tokens .* behind {past.dense} \({past.mod}\) does not fit",
        ):
            feeder.stream.step(layout, [1, 2, 3, 4], None, position=9, past=past)
    assert machine.cudart.calls == calls
    past = Rows(dense - 4, mod - 4)
    feeder.stream.step(layout, [1, 2, 3, 4], None, position=9, past=past)


def test_a_step_longer_than_was_planned_is_a_cache_error(feeder, machine):
    layout = step_layout((65,), machine.config.frame_num_tokens, machine.config.num_kept)
    with pytest.raises(CacheError, match=r"a step of 65 tokens .* a step at most 64 tokens"):
        feeder.stream.step(layout, [1] * 65, None, position=0, past=Rows(0, 0))


def test_a_frame_taken_back_is_as_if_it_had_never_been_fed(machine):
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


def test_close_gives_everything_back_and_once_is_enough(machine):
    model = machine.load()
    num_live = machine.cudart.num_live
    stream = model.open_stream()
    feeder = Feeder(stream, machine.config)
    for _ in range(3):
        feeder.feed((2,), [5, 6])
    stream.evict(Eviction(Rows(2, 2), Rows(2, 2), feeder.past, num_evicted=2))
    stream.step(*step_of(machine), position=8, past=Rows(4, 4))  # still on its way
    stream.close()
    stream.close()
    assert machine.cudart.num_live == num_live
    model.close()
    model.close()
    assert machine.cudart.num_live == 0


def step_of(machine):
    layout = step_layout((2,), machine.config.frame_num_tokens, machine.config.num_kept)
    return layout, [5, 6], None


def test_answers_outlive_the_model(machine):
    with machine.load() as model, model.open_stream() as stream:
        feeder = Feeder(stream, machine.config)
        feeder.step((2,), [5, 6])
        logits = stream.logits([1])
        copy = logits.copy()
    np.testing.assert_array_equal(logits, copy)


def open_and_close(machine):
    """Load the model and open a stream; one that fails leaves only what the model has."""
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
def test_whatever_fails_at_the_start_leaves_nothing_behind(machine, name):
    machine.open()
    num_calls = machine.cudart.calls[name]
    assert num_calls > 3
    for number in (1, num_calls // 2, num_calls):
        fails = stand_in_for(machine.bundle.folder)
        fails.cudart.fail_at[name] = number
        with pytest.raises(BackendError, match=f"{name} gives cudaErrorIllegalAddress"):
            open_and_close(fails)
        assert fails.cudart.num_live == 0


def test_a_failing_step_is_a_backend_error_with_cudas_name_of_it(feeder, machine):
    feeder.feed((2,), [5, 6])
    machine.cudart.failures["cudaMemcpyAsync"] = Error.cudaErrorIllegalAddress
    with pytest.raises(BackendError, match="cudaMemcpyAsync gives cudaErrorIllegalAddress"):
        feeder.feed((2,), [5, 6])


def test_a_gpu_with_too_little_memory_is_a_cache_error(machine):
    small = stand_in_for(machine.bundle.folder, memory_bytes=200_000)
    with pytest.raises(CacheError, match=r"Stand-in GPU has no .* MiB left for the KV cache"):
        open_and_close(small)
    assert small.cudart.num_live == 0


def feed_until_it_fails(machine):
    """Steps on a GPU that fails at one of them, and every call from then on."""
    names = ("cudaMemcpyAsync", "cudaStreamSynchronize", "cudaGraphExecDestroy", "cudaFree")
    with machine.load() as model, model.open_stream() as stream:
        feeder = Feeder(stream, machine.config)
        for _ in range(3):  # the third is a graph
            feeder.feed((2,), [5, 6])
        machine.cudart.failures |= dict.fromkeys(names, Error.cudaErrorIllegalAddress)
        feeder.feed((2,), [5, 6])


def test_closing_after_a_failure_does_not_hide_it(machine):
    with pytest.raises(BackendError, match="cudaMemcpyAsync gives cudaErrorIllegalAddress"):
        feed_until_it_fails(machine)
    assert machine.cudart.num_live == 0


# ---- engines that are not what they should be ----


def change_engine(machine, name, **changes):
    """Another engine under the same name, its manifest written anew."""
    engines = machine.build()
    path = machine.bundle.folder / engines.settings.folder / f"{name}.engine"
    data = json.loads(path.read_text())
    return engines, path, {**data, **changes}


def open_with(machine, path, data, monkeypatch):
    """Open with that in an engine's file, whose hash is not looked at."""
    monkeypatch.setattr("mod_edge.runtime.device.engine_choice.engine_fault", lambda *_, **__: "")
    before = path.read_bytes()
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    try:
        load_trt_model(
            machine.bundle,
            machine.limits,
            driver=CudaDriver(machine.cudart),
            tensorrt=machine.tensorrt,
        )
    finally:
        path.write_bytes(before)
        assert machine.cudart.num_live == 0


def test_an_engine_that_copies_its_cache_is_refused(in_place, monkeypatch):
    _, path, data = change_engine(in_place, "layer-01", aliases={"present_key": "past_key"})
    with pytest.raises(
        BackendError,
        match=r"layer-01\.engine is not the engine .* does not write 'present_value' into "
        r"'past_value' but copies the cache; remove .* and build again",
    ):
        open_with(in_place, path, data, monkeypatch)


def test_another_graphs_engine_is_refused(in_place, monkeypatch):
    graph = str(in_place.bundle.folder / "layers" / "00.onnx")
    _, path, data = change_engine(in_place, "layer-01", graph=graph)
    with pytest.raises(BackendError, match=r"layer-01\.engine .* it has no 'text_index'"):
        open_with(in_place, path, data, monkeypatch)


def test_an_engine_with_other_profiles_is_refused(in_place, monkeypatch):
    _, path, data = change_engine(in_place, "layer-01")
    data["profiles"].pop()
    with pytest.raises(BackendError, match="it has 2 optimization profiles, wanted 3"):
        open_with(in_place, path, data, monkeypatch)


def test_an_engine_that_does_not_load_is_refused_in_tensorrts_words(in_place, monkeypatch):
    _, path, _ = change_engine(in_place, "head")
    with pytest.raises(
        BackendError,
        match=r"TensorRT-RTX 1\.7\.1\.116 cannot load .*head\.engine: Serialization error: magic",
    ):
        open_with(in_place, path, "no engine", monkeypatch)
