"""Time and memory of a training step: the batch, the measurements and the document."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.paper_tables import step_cost
from benchmarks.paper_tables.arms import ARMS
from benchmarks.paper_tables.step_cost import (
    FRAMES_A_REPLY,
    REPLY_TOKENS,
    Batching,
    TrainingStep,
    measure_step_cost,
    peak_bytes,
    stream_batch,
)

SIZE_BYTES = 64 * 2**20
SLACK_BYTES = 4 * 2**20  # measured 0.1 MiB; a peak that is not reset is 64 MiB too large
SMALL = Batching(num_streams=2, num_frames=7, num_rounds=2, num_processes=1)


@pytest.fixture
def config(make_config):
    return make_config(num_layers=2)


def test_streams_have_frames_intervals_and_replies(config):
    batch = stream_batch(config, 3, 7)
    num_tokens = config.frame_num_tokens
    length = 7 * (1 + num_tokens) + REPLY_TOKENS
    assert batch.token_ids.shape == (3, length)
    assert batch.features.shape == (21, num_tokens, config.vision_config.hidden_size)
    rows = batch.frame_index.flatten()
    assert not batch.is_text.flatten()[rows].any()
    assert batch.is_text.sum() == 3 * length - len(rows)
    assert (batch.frame_index.diff(dim=1) == 1).all()
    assert batch.frame_index[7, 0] == length + 1  # the second stream's first frame


def test_last_tokens_of_frames_and_all_reply_tokens_are_labelled(config):
    batch = stream_batch(config, 2, FRAMES_A_REPLY)
    ends = batch.frame_index[:, -1]
    assert batch.label_rows[batch.is_stream].equal(ends)
    replies = batch.label_rows[~batch.is_stream].view(2, REPLY_TOKENS)
    assert replies[:, 0].equal(ends[[FRAMES_A_REPLY - 1, 2 * FRAMES_A_REPLY - 1]] + 1)


@pytest.mark.parametrize("arm", ["full", "mod"])
def test_a_step_changes_all_trained_parameters(config, arm):
    step = TrainingStep(replace(config, mod_config=ARMS[arm].mod))
    before = {name: each.detach().clone() for name, each in step._trained.items()}
    step.take(stream_batch(config, 2, 7))
    assert not any(torch.equal(each, before[name]) for name, each in step._trained.items())


def test_a_peak_includes_freed_memory_and_excludes_earlier_memory():
    kept = np.ones(SIZE_BYTES, np.uint8)  # allocated before, so it does not count

    def action():
        temporary = np.ones(SIZE_BYTES, np.uint8)
        del temporary

    assert peak_bytes(action) == pytest.approx(SIZE_BYTES, abs=SLACK_BYTES)
    assert peak_bytes(lambda: None) == pytest.approx(0, abs=SLACK_BYTES)
    assert kept[0] == 1


def test_the_document_has_both_arms_of_each_size(config, monkeypatch):
    peaks = {"full": [3, 1, 2], "mod": [5, 4, 6]}
    monkeypatch.setattr(step_cost, "_step_peaks", lambda *_: peaks)
    size = {"hidden_size": 24, "num_hidden_layers": 2}
    told = []
    document = measure_step_cost(
        config, sizes=[size], batching=SMALL, on_step=lambda *part: told.append(part)
    )
    (measured,) = document["sizes"]
    assert measured["title"] == "D=24, L=2"
    assert measured["step_bytes"] == {"full": 2, "mod": 5}
    assert {arm: len(times) for arm, times in measured["time_s"].items()} == {"full": 2, "mod": 2}
    assert 0 < measured["flops_ratio"] < 1
    # MoD has a router of 25 parameters in one of two layers
    assert measured["state_bytes"]["mod"] - measured["state_bytes"]["full"] == 12 * 25
    assert document["batch"] == {"streams": 2, "frames": 7, "tokens": 7 * 11 + REPLY_TOKENS}
    assert told == [("time, D=24, L=2", 0, 2), ("time, D=24, L=2", 1, 2)]


@pytest.mark.slow
def test_memory_is_measured_in_fresh_processes(make_config):
    document = measure_step_cost(
        make_config(),
        sizes=[{"hidden_size": 96, "num_hidden_layers": 6}],
        batching=Batching(num_streams=8, num_frames=61, num_rounds=1, num_processes=1),
        on_step=lambda *_: None,
    )
    (measured,) = document["sizes"]
    assert 0 < measured["step_bytes"]["mod"] < measured["step_bytes"]["full"]
