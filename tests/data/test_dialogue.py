"""Dialogues over frames, and that a session feeds the very ids that are learned."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from mod_edge.config import read_config
from mod_edge.data.clips import Clip, Line
from mod_edge.data.dialogue import (
    Shown,
    Text,
    Turn,
    dialogue_of_clip,
    pieces_of_dialogue,
)
from mod_edge.plan.kv_budget import plan_window
from mod_edge.plan.protocol import Decision, text_minimum
from mod_edge.runtime.capture.source import Frame
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import Session, SessionOptions

FPS = 2.0
MAX_NEW_TOKENS = 8


def clip_of(*lines):
    return Clip("a", Path("a.mp4"), 9.0, lines)


@pytest.fixture(scope="module")
def config(tiny_checkpoint):
    return read_config(tiny_checkpoint / "config.json")


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))


def test_a_line_comes_after_the_first_frame_that_shows_it():
    lines = [Line("assistant", "now", 1.0), Line("assistant", "later", 2.01)]
    dialogue = dialogue_of_clip(clip_of(*lines), FPS, 10)
    assert [turn.last_frame for turn in dialogue.turns] == [2, 5]
    assert [turn.first_frame for turn in dialogue.turns] == [0, 3]


def test_two_lines_of_one_frame_take_two_frames():
    lines = [Line("assistant", "one", 1.0), Line("assistant", "two", 0.9)]
    dialogue = dialogue_of_clip(clip_of(*lines), FPS, 10)
    assert [(turn.last_frame, turn.reply) for turn in dialogue.turns] == [(2, "one"), (3, "two")]


def test_a_query_is_answered_before_a_later_frame_is_seen():
    dialogue = dialogue_of_clip(clip_of(Line("user", "what?", 1.4)), FPS, 10)
    assert dialogue.turns[0].last_frame == 2


def test_what_comes_after_the_last_frame_is_left_out():
    dialogue = dialogue_of_clip(clip_of(Line("assistant", "late", 8.0)), FPS, 10)
    assert dialogue.turns == ()


def test_a_query_is_answered_by_the_line_of_its_time():
    lines = [Line("user", "what?", 1.0), Line("assistant", "that", 1.0, "shows", ("that",))]
    dialogue = dialogue_of_clip(clip_of(*lines), FPS, 10)
    assert dialogue.turns == (Turn(0, 3, "what?", "that", "shows", ("that",)),)


def test_a_query_without_an_answer_of_its_time_gets_an_empty_one():
    lines = [Line("user", "narrate", 0.0), Line("assistant", "a ball", 3.0)]
    turns = dialogue_of_clip(clip_of(*lines), FPS, 10).turns
    assert [(turn.query, turn.reply) for turn in turns] == [("narrate", ""), (None, "a ball")]


def test_each_turn_ends_with_speech_and_all_else_is_silence(config, tokenizer):
    lines = [Line("assistant", "now", 1.0), Line("user", "what?", 2.0)]
    dialogue = dialogue_of_clip(clip_of(*lines), FPS, 7)
    pieces = list(pieces_of_dialogue(dialogue, config.stream_config, tokenizer))
    decisions = [piece.decision for piece in pieces if isinstance(piece, Shown)]
    silent, speak = Decision.SILENT, Decision.SPEAK
    assert decisions == [silent, silent, speak, silent, None, silent, silent]


def test_the_learned_tokens_are_the_reply_and_its_end(config, tokenizer):
    dialogue = dialogue_of_clip(clip_of(Line("assistant", "A man walks.", 0.0)), FPS, 1)
    (reply,) = (
        piece
        for piece in pieces_of_dialogue(dialogue, config.stream_config, tokenizer)
        if isinstance(piece, Text) and piece.num_learned
    )
    learned = list(reply.ids[-reply.num_learned :])
    assert tokenizer.decode(learned[:-1]) == " A man walks."
    assert learned[-1] == config.stream_config.eos_token_id


class Parrot:
    """A stream that speaks at the frames and says the tokens that it is told to, noting all ids."""

    name = "parrot"
    warnings = ()

    def __init__(self, config, decisions, replies):
        self.config, self.decisions, self.replies = config, list(decisions), list(replies)
        self.fed, self.row_ids = [], []

    def encode(self, frames):
        return np.zeros((len(frames), 1, 1), np.float32)

    def step(self, layout, token_ids, frame_embeds, *, position, past):
        ids = iter(token_ids)
        self.row_ids = []
        for piece in layout.pieces:
            self.row_ids += [next(ids) for _ in range(piece)] or ["frame"]
        self.fed += self.row_ids

    def logits(self, rows):
        is_frame = self.row_ids[-1] == "frame"
        wanted = self.decisions.pop(0) if is_frame else self.replies.pop(0)
        logits = np.zeros((1, self.config.text_config.vocab_size), np.float32)
        logits[0, wanted] = 100
        return logits

    def close(self):
        pass


class BlackFrames:
    """A source of so many."""

    is_live = False
    num_dropped = 0

    def __init__(self, num_frames):
        self.warnings = []
        self.num_frames = num_frames

    def __iter__(self):
        image = np.zeros((8, 8, 3), np.uint8)
        return (Frame(index, index / FPS, image) for index in range(self.num_frames))


def test_what_is_learned_is_what_a_session_feeds(config, tokenizer):
    """The ids of a dialogue, next to those of a session that decides and says the same."""
    num_frames = 12
    lines = [
        Line("user", "Please narrate the video in real time.", 0.0),
        Line("assistant", "A man walks on the path.", 0.0),
        Line("assistant", "Two people wait.", 1.5),
        Line("user", "What happens?", 2.9),  # before the frame at 3 s
        Line("assistant", "A child stops.", 2.9),
        Line("assistant", "The group leaves.", 3.5),
    ]
    dialogue = dialogue_of_clip(clip_of(*lines), FPS, num_frames)
    pieces = list(pieces_of_dialogue(dialogue, config.stream_config, tokenizer))
    expected, decisions, replies = [], [], []
    ids = {
        Decision.SILENT: config.stream_config.frame_token_interval_id,
        Decision.SPEAK: config.stream_config.stream_end_id,
        None: 0,
    }
    for piece in pieces:
        if isinstance(piece, Shown):
            expected.append("frame")
            decisions.append(ids[piece.decision])
        else:
            expected += piece.ids
            replies += piece.ids[len(piece.ids) - piece.num_learned :]
    parrot = Parrot(config, decisions, replies)
    plan = plan_window(
        config, "2000", text_minimum(config.stream_config, tokenizer, 60), dtype="float32"
    )
    options = SessionOptions(0.0, 60, 1, 512, 0.125)
    session = Session(parrot, config, tokenizer, plan, options)
    queries = [Query(line.content, line.time_s) for line in lines if line.role == "user"]
    for _ in session.stream(BlackFrames(num_frames), queries):
        pass
    assert parrot.fed == expected
    assert not parrot.decisions
    assert not parrot.replies


def test_another_rate_moves_the_turns(config):
    dialogue = dialogue_of_clip(clip_of(Line("assistant", "now", 1.3)), 10.0, 30)
    assert dialogue.turns[0].last_frame == 13
    assert replace(dialogue, turns=()).num_frames == 30
