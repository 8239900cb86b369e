"""Free-running evaluation: what a model says by itself, compared with the true dialogue.

The truth is the dialogue that a model is trained on, so its times are those of frames: a caption is
due at the first frame that can show its event.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mod_edge.data.dialogue import Dialogue, Turn
from mod_edge.data.stream_metrics import is_same, match_in_order, mean, ratio
from mod_edge.errors import ConfigError
from mod_edge.evaluation.clip_frames import ClipFrames
from mod_edge.evaluation.eval_model import EvalModel
from mod_edge.runtime.capture.source import Source
from mod_edge.runtime.events import ReplyEvent
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import Session


@dataclass(frozen=True)
class Said:
    """A caption said at `time_s`, without a query."""

    time_s: float
    text: str


@dataclass(frozen=True)
class Account:
    """Everything that was said over a clip.

    Attributes:
        captions: in order of time.
        answers: one to each query, in order.
        num_rolls: how often the window rolled.
    """

    captions: tuple[Said, ...]
    answers: tuple[str, ...]
    num_rolls: int = 0


@dataclass(frozen=True)
class EventKind:
    """Numbers of captions of one kind: due, right, and said at the right moment."""

    num_true: int
    num_right: int
    num_moments: int


@dataclass(frozen=True)
class FreeRunning:
    """Counts over all clips and derived ratios; a ratio is None if its denominator is 0.

    A caption is right if it says what is due within the tolerance; each said and each true caption
    counts once. A moment is right if any caption is said then.

    Attributes:
        num_true: captions due.
        num_said: captions said.
        num_right: right captions.
        num_moments: right moments.
        time_error_s: mean time error of the right moments; above 0 is late.
        time_error_abs_s: mean absolute time error.
        num_answers: queries with a true answer.
        num_answers_right: questions answered right.
        num_rolls: how often the window rolled.
        kinds: counts by kind of event, if the data set names kinds.
    """

    num_true: int
    num_said: int
    num_right: int
    num_moments: int
    time_error_s: float | None
    time_error_abs_s: float | None
    num_answers: int
    num_answers_right: int
    num_rolls: int
    kinds: dict[str, EventKind]

    @property
    def precision(self) -> float | None:
        """Right captions / captions said."""
        return ratio(self.num_right, self.num_said)

    @property
    def recall(self) -> float | None:
        """Right captions / captions due."""
        return ratio(self.num_right, self.num_true)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall."""
        return ratio(2 * self.num_right, self.num_said + self.num_true)

    @property
    def moment_f1(self) -> float | None:
        """Moment F1: anything said at a right moment counts, whatever the words."""
        return ratio(2 * self.num_moments, self.num_said + self.num_true)


def run_free(
    model: EvalModel, dialogue: Dialogue, frames: ClipFrames, *, threshold: float, seed: int
) -> Account:
    """What the model says over the frames, asked the dialogue's queries."""
    with model.open_session(threshold, seed) as session:
        account = account_of(session, frames, dialogue)
        model.note_warnings(session.state)
    return account


def account_of(session: Session, source: Source, dialogue: Dialogue) -> Account:
    """What a new session says over the source, asked the dialogue's queries."""
    queries = queries_at_times(dialogue, session.config.stream_config.frame_fps)
    events = session.stream(source, queries)
    replies = [event for event in events if isinstance(event, ReplyEvent)]
    return Account(
        captions=tuple(Said(each.time_s, each.text) for each in replies if each.query is None),
        answers=tuple(each.text for each in replies if each.query is not None),
        num_rolls=session.summary().num_rolls,
    )


def check_tolerance(tolerance_s: float) -> None:
    """Check the largest time error of a right caption, in seconds.

    Raises:
        ConfigError: it is negative or not a number.
    """
    if not 0 <= tolerance_s < math.inf:
        raise ConfigError(f"tolerance={tolerance_s}, wanted a number of seconds, 0 or more")


def captions_of(dialogue: Dialogue) -> list[Turn]:
    """The turns in which the model should speak by itself."""
    return [turn for turn in dialogue.turns if turn.query is None]


def queries_of(dialogue: Dialogue) -> list[Turn]:
    """The turns with a query."""
    return [turn for turn in dialogue.turns if turn.query is not None]


def queries_at_times(dialogue: Dialogue, fps: float) -> list[Query]:
    """The dialogue's queries, each due at its turn's last frame."""
    return [Query(turn.query or "", turn.last_frame / fps) for turn in queries_of(dialogue)]


@dataclass(frozen=True)
class ScoredClip:
    """What was said over a clip, paired with what was due, for the counts and the transcript.

    Attributes:
        dialogue: what was due.
        account: what was said.
        said_s, due_s: times of the captions said and due, in seconds.
        right: (index of a said caption, index of a due one) that agree within the tolerance.
        moments: pairs by time alone, regardless of the words.
    """

    dialogue: Dialogue
    account: Account
    said_s: list[float]
    due_s: list[float]
    right: list[tuple[int, int]]
    moments: list[tuple[int, int]]


def score_clip(dialogue: Dialogue, account: Account, fps: float, tolerance_s: float) -> ScoredClip:
    """The account of one clip, paired with its dialogue."""
    turns, said = captions_of(dialogue), account.captions
    due_s, said_s = [turn.last_frame / fps for turn in turns], [each.time_s for each in said]

    def agree(i: int, j: int) -> bool:
        return is_same(said[i].text, turns[j].reply, turns[j].keys)

    return ScoredClip(
        dialogue,
        account,
        said_s,
        due_s,
        match_in_order(said_s, due_s, tolerance_s, agree),
        match_in_order(said_s, due_s, tolerance_s),
    )


def score(clips: Iterable[tuple[Dialogue, Account]], fps: float, tolerance_s: float) -> FreeRunning:
    """The accounts of some clips, compared with their dialogues."""
    return total(score_clip(dialogue, account, fps, tolerance_s) for dialogue, account in clips)


def total(clips: Iterable[ScoredClip]) -> FreeRunning:
    """The counts over some clips."""
    tally = _Tally()
    for clip in clips:
        tally.add_captions(clip)
        tally.add_answers(queries_of(clip.dialogue), clip.account.answers)
        tally.num_rolls += clip.account.num_rolls
    return tally.result()


class _Tally:
    """Counts, clip by clip."""

    def __init__(self) -> None:
        self._true, self._right, self._moments = Counter[str](), Counter[str](), Counter[str]()
        self._errors_s: list[float] = []
        self._num_said = self._num_answers = self._num_answers_right = 0
        self.num_rolls = 0

    def add_captions(self, clip: ScoredClip) -> None:
        kinds = [turn.kind for turn in captions_of(clip.dialogue)]
        self._num_said += len(clip.said_s)
        self._true.update(kinds)
        self._right.update(kinds[j] for _, j in clip.right)
        self._moments.update(kinds[j] for _, j in clip.moments)
        self._errors_s += [clip.said_s[i] - clip.due_s[j] for i, j in clip.moments]

    def add_answers(self, turns: Sequence[Turn], answers: Sequence[str]) -> None:
        for turn, answer in zip(turns, answers, strict=True):
            if turn.reply:
                self._num_answers += 1
                self._num_answers_right += is_same(answer, turn.reply, turn.keys)

    def result(self) -> FreeRunning:
        kinds = sorted(kind for kind in self._true if kind)
        return FreeRunning(
            num_true=self._true.total(),
            num_said=self._num_said,
            num_right=self._right.total(),
            num_moments=self._moments.total(),
            time_error_s=mean(self._errors_s),
            time_error_abs_s=mean([abs(each) for each in self._errors_s]),
            num_answers=self._num_answers,
            num_answers_right=self._num_answers_right,
            num_rolls=self.num_rolls,
            kinds={k: EventKind(self._true[k], self._right[k], self._moments[k]) for k in kinds},
        )
