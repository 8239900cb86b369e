"""One runner for many streams: its window, its limits, and none of an earlier stream in a later."""

from dataclasses import replace

import pytest

from mod_edge.data.dialogue import Text, pieces_of_dialogue
from mod_edge.errors import ConfigError
from mod_edge.evaluation.eval_model import Subject
from mod_edge.evaluation.free_running import run_free
from mod_edge.plan.kv_budget import rows_of
from mod_edge.plan.kv_window import Rows

pytestmark = pytest.mark.numeric

CROWDED = Rows(260, 148)  # holds a dialogue, and not what a random model says besides


def with_capacity(model, capacity):
    return replace(model, capacity=capacity)


def account_of(subject, watched):
    dialogue, footage = watched
    return run_free(subject, dialogue, footage, threshold=1.0, seed=0)


def test_the_window_holds_every_dialogue(make_subject, tiny_model, watched):
    subject = make_subject()
    for dialogue, _ in watched:
        pieces = pieces_of_dialogue(dialogue, tiny_model.config.stream_config, tiny_model.tokenizer)
        num_text = sum(len(piece.ids) for piece in pieces if isinstance(piece, Text))
        rows = rows_of(tiny_model.config, num_text, dialogue.num_frames)
        assert rows.fits(subject.limits.capacity)


def test_a_window_that_a_bundle_has_and_that_is_too_small_is_refused(tiny_model, clips):
    with pytest.raises(ConfigError, match=r"window of 150 .*--window, or take shorter clips"):
        Subject(with_capacity(tiny_model, Rows(150, 100)), clips)


def test_frames_a_step_are_as_many_as_tokens_allow(tiny_model, clips):
    profile = replace(tiny_model.profile, max_step_tokens=40)
    with Subject(replace(tiny_model, profile=profile), clips) as subject:
        assert subject.limits.frames_per_step == 3  # of 11 tokens
    with Subject(tiny_model, clips) as subject:
        assert subject.limits.frames_per_step == tiny_model.profile.frames_per_step.max


def test_one_runner_serves_all_streams_that_do_not_roll(make_subject, watched):
    subject = make_subject()
    first = subject.runner(0)
    account = account_of(subject, watched[1])
    assert account.num_rolls == 0
    assert subject.runner(0) is first


def test_a_stream_that_rolled_leaves_nothing_to_the_next(make_subject, tiny_model, watched):
    model = with_capacity(tiny_model, CROWDED)
    subject = make_subject(model)
    first = account_of(subject, watched[0])
    assert first.num_rolls > 0
    for clip in watched:
        assert account_of(subject, clip) == account_of(make_subject(model), clip)


def test_a_step_takes_no_more_frames_than_the_longest_clip_has(tiny_model, clips):
    short = [replace(clip, duration_s=0.5, conversation=()) for clip in clips]  # 2 frames
    with Subject(tiny_model, short) as subject:
        assert subject.limits.frames_per_step == 2
