"""Baselines that ignore the video; every measure should be compared with theirs."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest

from mod_edge.data.dialogue import Dialogue
from mod_edge.data.stream_metrics import frame_diff
from mod_edge.evaluation.free_running import Account, Said, captions_of, queries_of
from mod_edge.evaluation.teacher_forcing import late_frames


@dataclass(frozen=True)
class MajorityBaseline:
    """The most frequent caption ("" if there are none) and the most frequent answer by query."""

    caption: str
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Baseline:
    """Says the most frequent caption at fixed frames, regardless of the video.

    Attributes:
        name: for tables.
        frames: returns the frames of a dialogue at which it speaks.
        answers: whether it answers each query with the most frequent answer, or not at all.
    """

    name: str
    frames: Callable[[Dialogue], frozenset[int]]
    answers: bool = True

    def account(self, dialogue: Dialogue, majority: MajorityBaseline, fps: float) -> Account:
        """Its captions and answers for a clip."""
        asked = queries_of(dialogue)
        frames = sorted(self.frames(dialogue) - {turn.last_frame for turn in asked})
        answers = [majority.answers.get(turn.query or "", "") for turn in asked]
        return Account(
            tuple(Said(frame / fps, majority.caption) for frame in frames),
            tuple(answers if self.answers else [""] * len(asked)),
        )

    def frame_diffs(self, dialogue: Dialogue) -> list[int]:
        """`frame_diff` of every turn that has one."""
        frames, differences = self.frames(dialogue), []
        for turn, following in zip_longest(dialogue.turns, dialogue.turns[1:]):
            is_asked = turn.query is not None
            decided = range(turn.first_frame, turn.last_frame + (not is_asked))
            late = [frame in frames for frame in late_frames(turn, following)]
            if decided:
                decisions = [frame in frames for frame in decided]
                differences.append(frame_diff(decisions, late, is_asked=is_asked))
        return differences


BASELINES = (
    Baseline("always silent", lambda _dialogue: frozenset(), answers=False),
    Baseline("always speaking", lambda dialogue: frozenset(range(dialogue.num_frames))),
    # Takes the moments from the true dialogue.
    Baseline(
        "right moments",
        lambda dialogue: frozenset(turn.last_frame for turn in captions_of(dialogue)),
    ),
)


def majority_of(dialogues: Iterable[Dialogue]) -> MajorityBaseline:
    """The most frequent caption and answers; the first of equally frequent ones."""
    captions, answers = Counter[str](), defaultdict[str, Counter[str]](Counter)
    for dialogue in dialogues:
        captions.update(turn.reply for turn in captions_of(dialogue))
        for turn in queries_of(dialogue):
            answers[turn.query or ""][turn.reply] += 1
    caption = captions.most_common(1)[0][0] if captions else ""
    return MajorityBaseline(
        caption, {query: counts.most_common(1)[0][0] for query, counts in answers.items()}
    )
