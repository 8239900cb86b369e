"""Two streams on one model, turn by turn: each as if it had the model for itself, weights once."""

import json
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest

from mod_edge.bundle.bundle import open_bundle
from mod_edge.errors import CacheError
from mod_edge.export.bundle_writer import export_bundle
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.presets import preset_config, write_random_checkpoint
from mod_edge.plan.kv_budget import plan_capacity
from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.plan.layout import FRAME
from mod_edge.runtime.cpu.onnx_model import OnnxModel
from mod_edge.runtime.events import FrameEvent, ReplyEvent, RollEvent
from mod_edge.runtime.loaded_model import StreamLimits
from mod_edge.runtime.session import Session
from tests.runtime.recorder import Recorder
from tests.runtime.stand_in_model import (
    DELTA_CAPACITY,
    FRAMES_PER_STEP,
    MAX_STEP_TOKENS,
    Feeder,
)
from tests.runtime.streams import OPTIONS, STREAMS, TEXT_MINIMUM, without_times

MEMORY_SCRIPT = Path(__file__).with_name("two_stream_memory.py")
# What a second stream may take of anonymous memory, in sizes of its cache. Measured: 1.001 for the
# tiny geometry and 1.004 for the 135m; with weights of its own, 11.
MAX_GROWTH = 1.2
MIN_CACHE_BYTES = 100 * 10**6


@pytest.fixture
def open_session(tiny_bundle):
    """`open_session(model, capacity)`: a session on a stream of the model, which is recorded."""
    bundle = open_bundle(tiny_bundle)

    def make(model, capacity):
        plan = plan_capacity(bundle.config, capacity, TEXT_MINIMUM, dtype="float32")
        state = Recorder(model.open_stream())
        return Session(state, bundle.config, bundle.tokenizer, plan, OPTIONS)

    return make


def run_by_turns(sessions, streams):
    """What each gives: one event of each in turn, until the last has ended."""
    running = [session.stream(*stream) for session, stream in zip(sessions, streams, strict=True)]
    turns = zip(*zip_longest(*running), strict=True)
    return [[event for event in events if event is not None] for events in turns]


def test_each_gives_what_it_gives_on_a_model_of_its_own(load, open_session):
    model, capacity = load()
    with model, open_session(model, capacity) as first, open_session(model, capacity) as second:
        together = run_by_turns((first, second), STREAMS)
    for ours, session, stream in zip(together, (first, second), STREAMS, strict=True):
        own_model, _ = load()
        with own_model, open_session(own_model, capacity) as alone:
            (theirs,) = run_by_turns([alone], [stream])
        assert list(map(without_times, ours)) == list(map(without_times, theirs))
        assert session.state.steps == alone.state.steps
        assert session.state.selections == alone.state.selections
        # To the bit: the same graphs on the same shapes with one thread add in the same order.
        logits = zip(session.state.all_logits, alone.state.all_logits, strict=True)
        assert all(np.array_equal(our, their) for our, their in logits)
        kinds = [type(event) for event in ours]
        assert kinds.count(FrameEvent) >= 20
        assert kinds.count(ReplyEvent) >= 3
        assert kinds.count(RollEvent) >= 1
    assert together[0][:20] != together[1][:20]


@pytest.mark.parametrize("is_device", [False, True], ids=["onnx", "rtx"])
def test_what_a_step_computed_is_not_read_after_another_streams_step(
    tiny_bundle, make_machine, is_device
):
    if is_device:
        machine = make_machine("rtx", "fp32")
        model, config = machine.load(), machine.config
    else:
        bundle = open_bundle(tiny_bundle)
        limits = StreamLimits(DELTA_CAPACITY, MAX_STEP_TOKENS, FRAMES_PER_STEP)
        model, config = OnnxModel(bundle, limits), bundle.config
    with model, model.open_stream() as first, model.open_stream() as second:
        Feeder(first, config).feed((1,), [7])
        Feeder(second, config).feed((1,), [8])
        assert second.logits([0]).shape == (1, config.text_config.vocab_size)
        with pytest.raises(CacheError, match="another stream of this model has stepped since"):
            first.logits([0])
        with pytest.raises(CacheError, match="right after the step"):
            _ = first.kept


# ---- on a device ----


@pytest.mark.parametrize("target", ["tensorrt-delta", "rtx"])
def test_closing_one_stream_frees_what_it_took_and_the_other_goes_on(make_machine, target):
    machine, alone = make_machine(target, "fp32"), make_machine(target, "fp32")
    model = machine.load()
    at_first = taken(machine)
    closing, staying = (Feeder(model.open_stream(), machine.config) for _ in range(2))
    twin = Feeder(alone.open(), machine.config)
    side = machine.config.vision_config.image_size
    frames = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    for number in range(4):  # a shape that repeats becomes a CUDA graph
        feed_all(closing, frames[::-1], token_id=30 + number)
        ours, theirs = (feed_all(each, frames, token_id=5 + number) for each in (staying, twin))
        np.testing.assert_array_equal(ours, theirs)
        if number == 2:
            closing.stream.close()
            assert taken(machine) == taken(alone)
            closing = Feeder(model.open_stream(), machine.config)
    closing.stream.close()
    staying.stream.close()
    assert taken(machine) == at_first


def taken(machine):
    """How many things the device has given out, and how many bytes of it are free."""
    return machine.cudart.num_live, machine.cudart.cudaMemGetInfo()[1]


def feed_all(feeder, frames, *, token_id):
    """Logits after frames, a token and a roll."""
    embeds = feeder.stream.encode(frames)
    feeder.feed((1, FRAME, 1, FRAME), [token_id, 7], embeds[:2])
    feeder.feed((1,), [token_id])
    dropped = Rows(9, 3)
    num_evicted = feeder.position - feeder.past.dense + dropped.dense
    feeder.evict(Eviction(Rows(3, 1), dropped, feeder.past, num_evicted))
    return feeder.feed((1, FRAME), [token_id], embeds[2:])


# ---- memory ----


def grown(bundle, num_rows, *options):
    """Sizes of the caches by which the second stream's process grew; in a process of its own."""
    command = [sys.executable, MEMORY_SCRIPT, bundle, num_rows, *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    assert figures["cache_bytes"] > MIN_CACHE_BYTES
    return figures["grown_bytes"] / figures["cache_bytes"]


needs_smaps = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="reads /proc/self/smaps_rollup"
)


@needs_smaps
def test_a_second_stream_takes_the_memory_of_its_cache(tiny_bundle):
    assert 0.99 < grown(tiny_bundle, 80_000) < MAX_GROWTH


@needs_smaps
@pytest.mark.slow  # writes and exports 135 million weights: a minute
def test_a_second_stream_takes_no_memory_for_weights(tmp_path):
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    checkpoint.mkdir()
    config = preset_config("135m")
    write_random_checkpoint(config, checkpoint, seed=0)
    export_bundle(Checkpoint(checkpoint), bundle)
    assert 0.99 < grown(bundle, 3000) < MAX_GROWTH
    assert grown(bundle, 3000, "--own-model") > MAX_GROWTH
