"""What a model says when it is left to itself, held against what was to be said.

The truth is the dialogue that a model is trained on, so its times are those of frames: a caption is
due at the first frame that can show it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mod_edge.data.dialogue import Dialogue, Turn
from mod_edge.data.stream_metrics import is_same, match_in_order, mean, ratio
from mod_edge.evaluation.clip_frames import Footage
from mod_edge.evaluation.eval_model import Subject
from mod_edge.runtime.events import ReplyEvent
from mod_edge.runtime.queries import Query


@dataclass(frozen=True)
class Said:
    """Something said unasked at `time_s`."""

    time_s: float
    text: str


@dataclass(frozen=True)
class Account:
    """All that was said over a clip.

    Attributes:
        captions: what was said unasked, in order.
        answers: one to each query, in order.
        num_rolls: how often the window rolled.
    """

    captions: tuple[Said, ...]
    answers: tuple[str, ...]
    num_rolls: int = 0


@dataclass(frozen=True)
class EventKind:
    """Captions of one kind: how many were due, were right, and came at the right moment."""

    num_true: int
    num_right: int
    num_moments: int


@dataclass(frozen=True)
class FreeRunning:
    """Counts over all clips and what follows from them; None where a count is 0.

    A caption is right if it says what is due within the tolerance, each said and each true one
    counted once. A moment is right if anything at all is said then.

    Attributes:
        num_true: captions that were due.
        num_said: captions that were said.
        num_right: captions that were right.
        num_moments: moments that were right.
        time_error_s: mean of the moments' errors; above 0 is late.
        time_error_abs_s: mean of the errors' sizes.
        num_answers: queries that have an answer.
        num_answers_right: those that were answered right.
        num_rolls: of the window.
        kinds: by the kind of event, where the data set names it.
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
        """Share of the said captions that are right."""
        return ratio(self.num_right, self.num_said)

    @property
    def recall(self) -> float | None:
        """Share of the true captions that were said."""
        return ratio(self.num_right, self.num_true)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall."""
        return ratio(2 * self.num_right, self.num_said + self.num_true)

    @property
    def moment_f1(self) -> float | None:
        """The same of the moments, whatever is said."""
        return ratio(2 * self.num_moments, self.num_said + self.num_true)


def run_free(
    subject: Subject, dialogue: Dialogue, footage: Footage, *, threshold: float, seed: int
) -> Account:
    """What the model says over the footage, with the dialogue's queries put to it."""
    fps = subject.config.stream_config.frame_fps
    asked = queries_of(dialogue)
    queries = [Query(turn.query or "", turn.last_frame / fps) for turn in asked]
    session = subject.session(threshold, seed)
    events = session.stream(footage, queries)
    replies = [event for event in events if isinstance(event, ReplyEvent)]
    return Account(
        captions=tuple(Said(each.time_s, each.text) for each in replies if each.query is None),
        answers=tuple(each.text for each in replies if each.query is not None),
        num_rolls=session.summary().num_rolls,
    )


def captions_of(dialogue: Dialogue) -> list[Turn]:
    """The turns in which the model is to speak by itself."""
    return [turn for turn in dialogue.turns if turn.query is None]


def queries_of(dialogue: Dialogue) -> list[Turn]:
    """The turns in which it is asked."""
    return [turn for turn in dialogue.turns if turn.query is not None]


def score(clips: Iterable[tuple[Dialogue, Account]], fps: float, tolerance_s: float) -> FreeRunning:
    """The accounts of some clips, held against their dialogues."""
    tally = _Tally(fps, tolerance_s)
    for dialogue, account in clips:
        tally.add_captions(captions_of(dialogue), account.captions)
        tally.add_answers(queries_of(dialogue), account.answers)
        tally.num_rolls += account.num_rolls
    return tally.result()


class _Tally:
    """Counts, clip by clip."""

    def __init__(self, fps: float, tolerance_s: float) -> None:
        self._fps = fps
        self._tolerance_s = tolerance_s
        self._true, self._right, self._moments = Counter[str](), Counter[str](), Counter[str]()
        self._errors_s: list[float] = []
        self._num_said = self._num_answers = self._num_answers_right = 0
        self.num_rolls = 0

    def add_captions(self, turns: Sequence[Turn], said: Sequence[Said]) -> None:
        true_s, said_s = [turn.last_frame / self._fps for turn in turns], [e.time_s for e in said]

        def agree(i: int, j: int) -> bool:
            return is_same(said[i].text, turns[j].reply, turns[j].keys)

        kinds = [turn.kind for turn in turns]
        right = match_in_order(said_s, true_s, self._tolerance_s, agree)
        moments = match_in_order(said_s, true_s, self._tolerance_s)
        self._num_said += len(said)
        self._true.update(kinds)
        self._right.update(kinds[j] for _, j in right)
        self._moments.update(kinds[j] for _, j in moments)
        self._errors_s += [said_s[i] - true_s[j] for i, j in moments]

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
