"""What several streams cost: rounds of one frame each, in one batch, at the same fill."""

import json
from dataclasses import replace

import pytest

from mod_edge.bench import several_streams
from mod_edge.bench.memory import Memory
from mod_edge.bench.several_streams import StreamsRow, measure_streams
from mod_edge.bundle.bundle import open_bundle
from mod_edge.errors import ConfigError
from mod_edge.profiles import FrameRange
from mod_edge.runtime.backends import BackendChoice
from mod_edge.runtime.cpu.onnx_model import OnnxModel, OnnxStream


def measure(folder, *, num_past=100, window="260", **changes):
    bundle = open_bundle(folder)
    profile = bundle.profile(None)
    plan = bundle.plan(profile.window, 12, window=window, kv_budget_mib=None)
    profile = replace(profile, **changes)
    return plan, measure_streams(
        bundle, BackendChoice(), profile, plan, num_past=num_past, num_rounds=2, counts=(1, 3)
    )


def test_all_streams_watch_a_frame_of_one_batch_at_the_same_fill(tiny_bundle, monkeypatch):
    batches, pasts = [], []
    encode, step = OnnxModel.encode, OnnxStream.step

    def counted_encode(model, frames):
        batches.append(len(frames))
        return encode(model, frames)

    def counted_step(stream, layout, *args, past, **kwargs):
        if layout.num_frames:
            pasts.append(past.dense)
        step(stream, layout, *args, past=past, **kwargs)

    memory = iter([900, 1000, 1500])
    monkeypatch.setattr(OnnxModel, "encode", counted_encode)
    monkeypatch.setattr(OnnxStream, "step", counted_step)
    monkeypatch.setattr(several_streams, "memory_now", lambda: Memory(next(memory), None, None))
    plan, (one, three) = measure(tiny_bundle)
    assert batches == [3, *[1] * 6, *[1, 3] * 4]  # the warm-up, two frames of each stream, rounds
    assert pasts == [100] * (6 + 4 * 4)
    assert (one.num_streams, three.num_streams) == (1, 3)
    assert (one.stream_bytes, three.stream_bytes) == (None, 300)
    assert one.kv_bytes == three.kv_bytes == plan.size_bytes
    assert one.ratio == 1


def test_a_row_says_what_follows_from_its_times():
    row = StreamsRow(4, 100, 1.0, 4.0, 5.0, 0.9, None, 1000)
    assert (row.fps, row.interval_ms) == (200.0, 20.0)
    assert json.loads(json.dumps(row.to_json()))["stream_bytes"] is None


def test_a_window_without_room_for_a_frame_is_an_error(tiny_bundle):
    with pytest.raises(ConfigError, match=r"a frame after 255 tokens needs \d+ tokens .* has 260"):
        measure(tiny_bundle, num_past=255)


def test_more_frames_at_once_than_the_profile_allows_are_an_error(tiny_bundle):
    says = "3 streams encode 3 frames at once, profile 'cpu' allows 2"
    with pytest.raises(ConfigError, match=says):
        measure(tiny_bundle, frames_per_step=FrameRange(1, 1, 2))
