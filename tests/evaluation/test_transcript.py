"""Transcripts pair what was due with what was said."""

from mod_edge.data.dialogue import Dialogue, Turn
from mod_edge.evaluation.free_running import Account, Said, score_clip
from mod_edge.evaluation.transcript import Entry, transcript_of

FPS = 2.0
STOPS = Turn(0, 11, None, "The red ball stops.", "stops", ("red", "ball", "stops"))  # at 5 s
COLOUR = Turn(11, 4, "What colour is it?", "Red.")  # at 7 s
LEAVES = Turn(15, 6, None, "The red ball leaves.", "leaves", ("red", "ball", "leaves"))  # at 10 s


def entries_of(*said, answer="Red."):
    account = Account(tuple(Said(*each) for each in said), (answer,))
    clip = score_clip(Dialogue((STOPS, COLOUR, LEAVES), 40), account, FPS, 1.0)
    return transcript_of("a", clip, FPS, 1.0).entries


def test_a_right_caption_is_paired_with_the_true_one():
    first, answer, last = entries_of((5.5, "The red ball stops."))
    assert first == Entry(5.0, None, STOPS.reply, STOPS.reply, 0.5, is_right=True)
    assert answer == Entry(7.0, COLOUR.query, "Red.", "Red.", 0.0, is_right=True)
    assert last == Entry(10.0, None, LEAVES.reply, None, None, is_right=False)


def test_a_wrong_caption_is_paired_by_time():
    first, *_ = entries_of((4.5, "The red ball leaves."))
    assert first == Entry(5.0, None, STOPS.reply, "The red ball leaves.", -0.5, is_right=False)


def test_a_right_caption_is_not_taken_by_a_nearer_wrong_one():
    first, extra, *_ = entries_of((5.0, "The box stops."), (6.0, "The red ball stops."))
    other = next(entry for entry in (first, extra) if entry.due is None)
    right = next(entry for entry in (first, extra) if entry.is_right)
    assert (right.said, right.late_s) == (STOPS.reply, 1.0)
    assert other == Entry(5.0, None, None, "The box stops.", None, is_right=False)


def test_a_caption_without_a_true_one_is_unpaired():
    entries = entries_of((2.0, "Hello."))
    assert entries[0] == Entry(2.0, None, None, "Hello.", None, is_right=False)


def test_a_wrong_answer_is_wrong():
    assert [entry.is_right for entry in entries_of(answer="Blue.")] == [False, False, False]
