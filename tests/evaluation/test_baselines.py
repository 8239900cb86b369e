"""The baselines: their captions and their times."""

import pytest

from mod_edge.data.dialogue import Dialogue, Turn
from mod_edge.evaluation.baselines import BASELINES, MajorityBaseline, majority_of
from mod_edge.evaluation.free_running import Account, Said
from mod_edge.evaluation.teacher_forcing import time_diff_s

SILENT, SPEAKING, MOMENTS = BASELINES
MAJORITY = MajorityBaseline("It moves.", {"What?": "Red."})
# Frames: 0 asked; 1 2 3 caption; 4 5 asked; 6 7 8 caption; 9 silent.
DIALOGUE = Dialogue(
    (
        Turn(0, 1, "Narrate.", "Here."),
        Turn(1, 3, None, "It moves."),
        Turn(4, 2, "What?", "Blue."),
        Turn(6, 3, None, "It stops."),
    ),
    10,
)


def said(*frames):
    return tuple(Said(frame / 2, "It moves.") for frame in frames)


@pytest.mark.parametrize(
    ("baseline", "account"),
    [
        (SILENT, Account((), ("", ""))),
        (SPEAKING, Account(said(1, 2, 3, 4, 6, 7, 8, 9), ("", "Red."))),
        (MOMENTS, Account(said(3, 8), ("", "Red."))),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_accounts_of_the_baselines(baseline, account):
    assert baseline.account(DIALOGUE, MAJORITY, fps=2.0) == account


@pytest.mark.parametrize(
    ("baseline", "differences"),
    [
        (SILENT, [-2, 0, 0]),  # 2 of the next turn's frames; asked; no next turn
        (SPEAKING, [2, 1, 2]),
        (MOMENTS, [0, 0, 0]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_time_errors_of_the_baselines(baseline, differences):
    assert baseline.frame_diffs(DIALOGUE) == differences
    seconds = sum(map(abs, differences)) / len(differences) / 2
    assert time_diff_s([baseline.frame_diffs(DIALOGUE)], fps=2.0) == pytest.approx(seconds)


def test_the_majority_has_the_most_frequent_texts():
    majority = majority_of([DIALOGUE, Dialogue(DIALOGUE.turns[1:3], 6)])
    assert majority == MajorityBaseline("It moves.", {"Narrate.": "Here.", "What?": "Blue."})
    assert majority_of([Dialogue(DIALOGUE.turns[:1], 1)]).caption == ""
