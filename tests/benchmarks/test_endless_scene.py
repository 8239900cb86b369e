"""The table of a long scene counts every caption and every answer in one part only."""

import pytest

from benchmarks.endless_scene import DURATION_S, SLICE_S, Narration, endless_table
from mod_edge.data.dialogue import Dialogue, Turn
from mod_edge.evaluation.free_running import Account, Said

FPS = 2.0
STOPS, LEAVES = "The red ball stops.", "The box leaves."


@pytest.fixture
def narration():
    """Two captions due, one at the border of two parts, and a question in each part."""
    border = round(SLICE_S * FPS)
    turns = (
        Turn(10, 1, None, STOPS, "stops", ("red", "ball", "stops")),
        Turn(20, 1, "Which?", "Red."),
        Turn(border, 1, None, LEAVES, "leaves", ("box", "leaves")),
        Turn(border + 20, 1, "Which?", "Blue."),
    )
    said = (Said(5.0, STOPS), Said(SLICE_S, "A star leaves."))
    dialogue = Dialogue(turns, round(DURATION_S * FPS))
    return Narration(dialogue, Account(said, ("Red.", "Green."), num_rolls=3), FPS)


def test_each_part_has_its_own_captions_and_answers(narration):
    first = narration.between(0, SLICE_S)
    second = narration.between(SLICE_S, 2 * SLICE_S)
    assert (first.num_true, first.f1, first.num_answers, first.num_answers_right) == (1, 1, 1, 1)
    assert (second.num_true, second.f1, second.moment_f1) == (1, 0, 1)
    assert (second.num_answers, second.num_answers_right) == (1, 0)


def test_the_table_has_a_row_for_every_ten_minutes_and_a_dash_where_nothing_was_due(narration):
    introduction, _, *table = endless_table(narration).splitlines()
    assert introduction == "One scene of an hour with a window of 20 s, which rolled 3 times:"
    assert table == [
        "| minutes | captions due | F1 | moment F1 | answers |",
        "| --- | --- | --- | --- | --- |",
        "| 0 to 10 | 1 | 1.000 | 1.000 | 1 of 1 |",
        "| 10 to 20 | 1 | 0.000 | 1.000 | 0 of 1 |",
        *(f"| {start} to {start + 10} | 0 | - | - | 0 of 0 |" for start in (20, 30, 40, 50)),
    ]
