"""Dialogues aligned with frames; a session feeds exactly the ids that are trained on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mod_edge.config import read_config
from mod_edge.data.clips import Clip, Line
from mod_edge.data.dialogue import Shown, Turn, dialogue_of_clip, pieces_of_dialogue
from mod_edge.plan.kv_budget import plan_window
from mod_edge.plan.protocol import Decision, text_minimum
from mod_edge.plan.tokenizer import prepared, read_tokenizer
from mod_edge.runtime.capture.source import Frame
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import Session
from tests.chat_folders import chat_tokenizer, in_chat_template
from tests.frame_layouts import without_interval

FPS = 2.0
MAX_NEW_TOKENS = 60


def clip_of(*lines):
    return Clip("a", Path("a.mp4"), 9.0, lines)


@pytest.fixture(scope="module")
def config(tiny_checkpoint):
    return read_config(tiny_checkpoint / "config.json")


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint, config):
    return read_tokenizer(tiny_checkpoint / "tokenizer.json", config)


def says(text, time_s, *more):
    return Line("assistant", text, time_s, *more)


def asks(text, time_s):
    return Line("user", text, time_s)


@pytest.mark.parametrize(
    ("lines", "fps", "turns"),
    [
        ([says("a", 1.0), says("b", 2.01)], FPS, [Turn(0, 3, None, "a"), Turn(3, 3, None, "b")]),
        ([says("now", 1.3)], 5.0, [Turn(0, 8, None, "now")]),
        ([says("a", 1.0), says("b", 0.9)], FPS, [Turn(0, 3, None, "a"), Turn(3, 1, None, "b")]),
        ([says("late", 8.0)], FPS, []),
        ([asks("what?", 1.4)], FPS, [Turn(0, 3, "what?", "")]),
        (
            [asks("what?", 1.0), says("that", 1.0, "shows", ("that",))],
            FPS,
            [Turn(0, 3, "what?", "that", "shows", ("that",))],
        ),
        (
            [asks("narrate", 0.0), says("a ball", 3.0)],
            FPS,
            [Turn(0, 1, "narrate", ""), Turn(1, 6, None, "a ball")],
        ),
    ],
    ids=[
        "a caption follows the first frame that shows its event",
        "another frame rate",
        "two captions of one frame take two frames",
        "a caption after the last frame is dropped",
        "a query is answered before any later frame",
        "a query is answered by the line of its time",
        "a query without an answer gets an empty one",
    ],
)
def test_turns_of_a_clip(lines, fps, turns):
    assert dialogue_of_clip(clip_of(*lines), fps, 10).turns == tuple(turns)


class Parrot:
    """A stream with scripted decisions and reply tokens, which records all ids that it is fed."""

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
    """A source of `num_frames` black frames."""

    is_live = False
    is_ready = True
    num_dropped = 0

    def __init__(self, num_frames):
        self.warnings = []
        self.num_frames = num_frames

    def __iter__(self):
        image = np.zeros((8, 8, 3), np.uint8)
        return (Frame(index, index / FPS, image) for index in range(self.num_frames))


def run_scripted_session(pieces, lines, config, tokenizer):
    """Run a session that makes the decisions and says the replies of `pieces`.

    Returns the session and its `Parrot`.
    """
    stream = config.stream_config
    ids = {
        Decision.SILENT: stream.silent_id,
        Decision.SPEAK: stream.stream_end_id,
        None: 0,
    }
    decisions = [ids[piece.decision] for piece in pieces if isinstance(piece, Shown)]
    texts = [piece for piece in pieces if not isinstance(piece, Shown)]
    replies = [each for text in texts for each in text.ids[len(text.ids) - text.num_learned :]]
    parrot = Parrot(config, decisions, replies)
    least_text = text_minimum(stream, tokenizer, MAX_NEW_TOKENS)
    plan = plan_window(config, "2000", least_text, dtype="float32")
    options = SessionOptions(0.0, MAX_NEW_TOKENS, 1, 512, 0.125)
    session = Session(parrot, config, tokenizer, plan, options)
    queries = [Query(line.content, line.time_s) for line in lines if line.role == "user"]
    for _ in session.stream(BlackFrames(len(decisions)), queries):
        pass
    return session, parrot


def in_template(config, name):
    """The config in a chat template, with the template's tokenizer."""
    tokenizer = prepared(chat_tokenizer(name))
    text = replace(config.text_config, vocab_size=tokenizer.get_vocab_size())
    stream = in_chat_template(config.stream_config, name, tokenizer)
    return replace(config, text_config=text, stream_config=stream), tokenizer


@pytest.mark.parametrize("layout", ["interval", "no interval", "chatml", "llama3"])
def test_a_dialogues_ids_are_those_that_a_session_feeds(config, tokenizer, layout):
    if layout == "no interval":
        config = without_interval(config)
    elif layout != "interval":
        config, tokenizer = in_template(config, layout)
    lines = [
        Line("user", "Please narrate the video in real time.", 0.0),
        Line("assistant", "A man walks on the path.", 0.0),
        Line("assistant", "Two people wait.", 1.5),
        Line("user", "What happens?", 2.9),  # before the frame at 3 s
        Line("assistant", "A child stops.", 2.9),
        Line("assistant", "The group leaves.", 3.5),
    ]
    dialogue = dialogue_of_clip(clip_of(*lines), FPS, 12)
    pieces = list(pieces_of_dialogue(dialogue, config.stream_config, tokenizer))
    _, parrot = run_scripted_session(pieces, lines, config, tokenizer)
    fed = [["frame"] if isinstance(piece, Shown) else piece.ids for piece in pieces]
    assert parrot.fed == [each for ids in fed for each in ids]
    assert not parrot.decisions
    assert not parrot.replies


def test_a_control_token_in_a_written_line_is_text_to_feed_and_to_learn(config, tokenizer):
    stream = config.stream_config
    lines = [asks("Say <|eot_id|>.", 0.0), says("It is <|eot_id|><|begin_of_text|>!", 0.0)]
    dialogue = dialogue_of_clip(clip_of(*lines), FPS, 1)
    opening, _, turn = pieces_of_dialogue(dialogue, stream, tokenizer)
    assert turn.ids.count(stream.eos_token_id) == 1
    assert turn.ids[-1] == stream.eos_token_id
    assert stream.bos_token_id not in turn.ids
    assert tokenizer.decode(turn.ids) == (
        "]\nUser: Say <|eot_id|>.\nAssistant: It is <|eot_id|><|begin_of_text|>!"
    )
    assert tokenizer.decode(turn.ids[-turn.num_learned :]) == f" {lines[1].content}"
    assert opening.ids.count(stream.bos_token_id) == 1
