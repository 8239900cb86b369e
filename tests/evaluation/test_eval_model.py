"""One model for many streams: its window and limits; streams do not affect each other."""

from dataclasses import replace

import pytest

from mod_edge.data.clips import MAX_DURATION_S
from mod_edge.errors import ConfigError
from mod_edge.evaluation.eval_model import EvalModel
from mod_edge.evaluation.free_running import run_free
from mod_edge.plan.kv_window import Rows

pytestmark = pytest.mark.numeric

CROWDED = Rows(260, 148)  # holds a true dialogue, but not the longer replies of a random model


def with_capacity(source, capacity):
    return replace(source, capacity=capacity)


def account_of(model, clip_frames):
    dialogue, frames = clip_frames
    return run_free(model, dialogue, frames, threshold=1.0, seed=0)


def test_a_fixed_window_that_is_too_small_is_refused(tiny_source, clips):
    with pytest.raises(ConfigError, match=r"window of 150 .*--window, or use shorter clips"):
        EvalModel(with_capacity(tiny_source, Rows(150, 100)), clips)


def test_frames_per_step_are_limited_by_tokens_profile_and_longest_clip(tiny_source, clips):
    profile = replace(tiny_source.profile, max_step_tokens=40)
    short = [replace(clip, duration_s=0.5, conversation=()) for clip in clips]  # 2 frames
    for source, shown, limit in (
        (replace(tiny_source, profile=profile), clips, 3),  # of 11 tokens
        (tiny_source, clips, tiny_source.profile.frames_per_step.max),
        (tiny_source, short, 2),
    ):
        with EvalModel(source, shown) as model:
            assert model.limits.frames_per_step == limit


def test_the_window_is_planned_for_the_frames_in_the_video(tiny_source, clips):
    """A line may state a day for a video of five seconds."""
    capacities = []
    for duration_s in (4.6, MAX_DURATION_S):  # 10 frames each
        stated = [replace(clip, duration_s=duration_s) for clip in clips]
        with EvalModel(tiny_source, stated) as model:
            capacities.append(model.limits.capacity)
    assert capacities[0] == capacities[1]


def test_weights_are_loaded_once_for_all_streams_even_after_a_roll(
    make_eval_model, tiny_source, clip_frames
):
    loaded = []

    def load(limits):
        loaded.append(limits)
        return tiny_source.load(limits)

    model = make_eval_model(with_capacity(replace(tiny_source, load=load), CROWDED))
    accounts = [account_of(model, clip) for clip in clip_frames]
    assert accounts[0].num_rolls > 0
    assert len(loaded) == 1


def test_a_rolled_stream_does_not_affect_the_next(make_eval_model, tiny_source, clip_frames):
    source = with_capacity(tiny_source, CROWDED)
    model = make_eval_model(source)
    first = account_of(model, clip_frames[0])
    assert first.num_rolls > 0
    for clip in clip_frames:
        assert account_of(model, clip) == account_of(make_eval_model(source), clip)
