"""What was due over a clip and what was said, side by side: for people to read."""

from collections.abc import Iterator
from dataclasses import dataclass

from mod_edge.data.dialogue import Dialogue
from mod_edge.data.stream_metrics import is_same, match_in_order
from mod_edge.evaluation.free_running import Account, captions_of, queries_of


@dataclass(frozen=True)
class Entry:
    """One moment of a clip.

    Attributes:
        time_s: when it was due; when it was said, if nothing was due.
        query: what was asked, None for a caption.
        due: what should have been said, None if nothing.
        said: what was said, None if nothing.
        late_s: by how much it was late (below 0: early), None unless both are there.
        is_right: whether it counts as right.
    """

    time_s: float
    query: str | None
    due: str | None
    said: str | None
    late_s: float | None
    is_right: bool


@dataclass(frozen=True)
class Transcript:
    """A clip's entries, in order of time."""

    clip: str
    entries: tuple[Entry, ...]


def transcript_of(
    clip: str, dialogue: Dialogue, account: Account, fps: float, tolerance_s: float
) -> Transcript:
    """The account of a clip beside its dialogue.

    Right captions are paired first, as they are counted; what is left is paired by time alone.
    """
    entries = [*_captions(dialogue, account, fps, tolerance_s), *_answers(dialogue, account, fps)]
    return Transcript(clip, tuple(sorted(entries, key=lambda entry: entry.time_s)))


def _captions(
    dialogue: Dialogue, account: Account, fps: float, tolerance_s: float
) -> Iterator[Entry]:
    turns, said = captions_of(dialogue), account.captions
    due_s, said_s = [turn.last_frame / fps for turn in turns], [each.time_s for each in said]
    right = match_in_order(
        said_s,
        due_s,
        tolerance_s,
        lambda i, j: is_same(said[i].text, turns[j].reply, turns[j].keys),
    )
    taken, met = {i for i, _ in right}, {j for _, j in right}
    others = match_in_order(
        said_s, due_s, tolerance_s, lambda i, j: i not in taken and j not in met
    )
    partner = {j: i for i, j in [*right, *others]}
    for j, turn in enumerate(turns):
        i = partner.get(j)
        text, late_s = (None, None) if i is None else (said[i].text, said_s[i] - due_s[j])
        yield Entry(due_s[j], None, turn.reply, text, late_s, is_right=j in met)
    for i, each in enumerate(said):
        if i not in partner.values():
            yield Entry(each.time_s, None, None, each.text, None, is_right=False)


def _answers(dialogue: Dialogue, account: Account, fps: float) -> Iterator[Entry]:
    for turn, text in zip(queries_of(dialogue), account.answers, strict=True):
        is_right = is_same(text, turn.reply, turn.keys)
        yield Entry(turn.last_frame / fps, turn.query, turn.reply, text, 0.0, is_right=is_right)
