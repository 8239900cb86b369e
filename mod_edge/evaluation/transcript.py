"""Transcripts: what was due over a clip and what was said, side by side."""

from collections.abc import Iterator
from dataclasses import dataclass

from mod_edge.data.stream_metrics import is_same, match_in_order
from mod_edge.evaluation.free_running import ScoredClip, captions_of, queries_of


@dataclass(frozen=True)
class Entry:
    """One moment of a clip.

    Attributes:
        time_s: when it was due; when it was said, if nothing was due.
        query: the question; None for a caption.
        due: what should have been said, None if nothing.
        said: what was said, None if nothing.
        late_s: the delay (below 0: early); None unless something was due and said.
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


def transcript_of(name: str, clip: ScoredClip, fps: float, tolerance_s: float) -> Transcript:
    """What was said over the clip called `name`, and what was due.

    Right captions are paired first, as in the counts, and the rest by time alone.
    """
    entries = [*_captions(clip, tolerance_s), *_answers(clip, fps)]
    return Transcript(name, tuple(sorted(entries, key=lambda entry: entry.time_s)))


def _captions(clip: ScoredClip, tolerance_s: float) -> Iterator[Entry]:
    said, said_s, due_s = clip.account.captions, clip.said_s, clip.due_s
    taken, met = {i for i, _ in clip.right}, {j for _, j in clip.right}
    others = match_in_order(
        said_s, due_s, tolerance_s, lambda i, j: i not in taken and j not in met
    )
    partner = {j: i for i, j in [*clip.right, *others]}
    for j, turn in enumerate(captions_of(clip.dialogue)):
        i = partner.get(j)
        text, late_s = (None, None) if i is None else (said[i].text, said_s[i] - due_s[j])
        yield Entry(due_s[j], None, turn.reply, text, late_s, is_right=j in met)
    for i, each in enumerate(said):
        if i not in partner.values():
            yield Entry(each.time_s, None, None, each.text, None, is_right=False)


def _answers(clip: ScoredClip, fps: float) -> Iterator[Entry]:
    for turn, text in zip(queries_of(clip.dialogue), clip.account.answers, strict=True):
        is_right = is_same(text, turn.reply, turn.keys)
        yield Entry(turn.last_frame / fps, turn.query, turn.reply, text, 0.0, is_right=is_right)
