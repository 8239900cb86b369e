"""Scores of free-running captions and answers, and that they come from the session."""

import pytest

from mod_edge.data.dialogue import Dialogue, Turn
from mod_edge.evaluation.free_running import Account, EventKind, Said, run_free, score
from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.runtime.events import ReplyEvent
from mod_edge.runtime.open_session import open_session
from mod_edge.runtime.queries import Query

pytestmark = pytest.mark.numeric

FPS = 2.0


def caption(frame, reply, *keys):
    return Turn(frame, 1, None, reply, keys[-1] if keys else "", keys)


def question(frame, reply, query="What?"):
    return Turn(frame, 1, query, reply)


def scored(turns, *said, answers=()):
    account = Account(tuple(Said(*each) for each in said), answers)
    return score([(Dialogue(turns, 60), account)], FPS, tolerance_s=1.0)


BALL_STOPS = caption(10, "The red ball stops.", "red", "ball", "stops")
BOX_LEAVES = caption(20, "The box leaves.", "box", "leaves")


def test_right_words_at_the_right_moment_count():
    result = scored((BALL_STOPS, BOX_LEAVES), (5.0, "The red ball stops"), (9.5, "A box leaves."))
    assert (result.precision, result.recall, result.f1, result.moment_f1) == (1, 1, 1, 1)
    assert result.time_error_s == pytest.approx(-0.25)
    assert result.time_error_abs_s == pytest.approx(0.25)


def test_wrong_words_at_the_right_moment_are_a_moment_only():
    result = scored((BALL_STOPS, BOX_LEAVES), (6.0, "The box leaves."))
    assert (result.num_true, result.num_said) == (2, 1)
    assert (result.num_right, result.num_moments) == (0, 1)
    assert result.f1 == 0
    assert result.moment_f1 == pytest.approx(2 / 3)
    assert result.time_error_s == pytest.approx(1.0)


STOPS = "The red ball stops."


@pytest.mark.parametrize(
    ("said", "precision", "recall", "moment_f1", "time_error_abs_s"),
    [
        ([], None, 0, 0, None),
        ([(6.5, STOPS)], 0, 0, 0, None),  # too late
        ([(5.0, STOPS), (5.5, STOPS)], 0.5, 1, 2 / 3, 0),  # a repeated caption counts once
        ([(5.0, "A star enters."), (5.5, STOPS)], 0.5, 1, 2 / 3, 0),  # the nearer one is wrong
    ],
)
def test_captions_around_one_true_caption(said, precision, recall, moment_f1, time_error_abs_s):
    result = scored((BALL_STOPS,), *said)
    assert (result.precision, result.recall) == (precision, recall)
    assert result.moment_f1 == pytest.approx(moment_f1)
    assert result.time_error_abs_s == time_error_abs_s


def test_answers_are_compared_with_their_queries_in_order():
    turns = (question(0, "Red."), BALL_STOPS, question(15, "Two."), question(30, ""))
    result = scored(turns, answers=("red", "three", "who knows"))
    assert (result.num_answers_right, result.num_answers) == (1, 2)  # one query has no answer
    assert result.num_true == 1


def test_counts_are_pooled_over_clips():
    dialogue = Dialogue((BALL_STOPS,), 60)
    right, silent = Account((Said(5.0, "The red ball stops."),), (), 2), Account((), (), 1)
    result = score([(dialogue, right), (dialogue, silent)], FPS, 1.0)
    assert (result.precision, result.recall, result.num_rolls) == (1, 0.5, 3)


def test_captions_are_counted_by_kind_of_event():
    turns = (BALL_STOPS, BOX_LEAVES, caption(30, "It stops.", "stops"), caption(40, "Night falls."))
    result = scored(turns, (5.0, "The red ball stops."), (15.0, "Hello."), (20.0, "night falls"))
    assert result.kinds == {"leaves": EventKind(1, 0, 0), "stops": EventKind(2, 1, 2)}
    assert result.num_right == 2


def test_a_free_run_equals_a_session_on_the_file(
    make_eval_model, tiny_bundle, tiny_source, clips, clip_frames
):
    # PyTorch and ONNX Runtime round differently, but no token is near a tie: the likeliest leads
    # the next by 0.026 or more, router logits differ by 3.8e-3 or more at the cut.
    dialogue, frames = clip_frames[1]
    fps = tiny_source.config.stream_config.frame_fps
    model = make_eval_model()
    ours = run_free(model, dialogue, frames, threshold=0.0, seed=0)
    with model.open_session(0.0, 0) as session:
        max_new_tokens = session.options.max_new_tokens
    with (
        open_session(
            tiny_bundle,
            window="120s",
            threshold=0.0,
            max_new_tokens=max_new_tokens,
            frames_per_step=1,
        ) as session,
        VideoFile(clips[1].video, fps=fps) as video,
    ):
        events = list(session.stream(video, [Query("Which?", 2.4)]))
    replies = [event for event in events if isinstance(event, ReplyEvent)]
    unasked = [Said(each.time_s, each.text) for each in replies if each.query is None]
    assert 0 < len(unasked) < len(frames.pixels)
    assert ours == Account(
        tuple(unasked), tuple(each.text for each in replies if each.query == "Which?")
    )
