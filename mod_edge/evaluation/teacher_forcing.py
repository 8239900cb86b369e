"""The published measures, teacher-forced: a model is fed the true dialogue, step by step.

If it is silent up to a turn's last frame, it is fed some of the next turn's frames without the
reply, to measure how late it would have spoken; then they are removed from the cache in both
geometries. (The published code truncates all layers equally, which leaves rows of these frames in
MoD layers.)
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from mod_edge.data.dialogue import Dialogue, Script, Shown, Text, Turn
from mod_edge.data.stream_metrics import (
    Float64Array,
    TurnOutcome,
    frame_diff,
    mean_of_means,
    num_late_frames,
    num_leading,
    speaks,
    token_losses,
)
from mod_edge.evaluation.eval_model import EvalModel
from mod_edge.plan.kv_window import KvWindow
from mod_edge.runtime.loaded_model import StreamState, UInt8Array
from mod_edge.runtime.stepper import Stepper


@dataclass(frozen=True)
class TeacherForced:
    """Means over each clip's turns, then over the clips; None if no turn has the value.

    Attributes:
        lm_ppl: LM-PPL, perplexity of the replies.
        time_diff_s: TimeDiff, absolute time error of the first frame at which it speaks.
        fluency: share of decisions and tokens before the first mistake, 0..1.
        lm_correctness: share of the replies' tokens before the first mistake, 0..1.
    """

    lm_ppl: float | None = None
    time_diff_s: float | None = None
    fluency: float | None = None
    lm_correctness: float | None = None


def summarize(clips: Sequence[Sequence[TurnOutcome]], fps: float) -> TeacherForced:
    """The measures of some clips, each a list of turns."""
    return TeacherForced(
        lm_ppl=mean_of_means(
            [turn.perplexity for turn in turns if turn.has_words] for turns in clips
        ),
        time_diff_s=time_diff_s(
            ([turn.frame_diff for turn in turns if turn.frame_diff is not None] for turns in clips),
            fps,
        ),
        fluency=mean_of_means(
            [turn.fluency for turn in turns if turn.fluency is not None] for turns in clips
        ),
        lm_correctness=mean_of_means(
            [turn.correctness for turn in turns if turn.has_words] for turns in clips
        ),
    )


def time_diff_s(clips: Iterable[Sequence[int]], fps: float) -> float | None:
    """TimeDiff from the `frame_diff` of each clip's turns."""
    return mean_of_means([abs(each) / fps for each in turns] for turns in clips)


def teacher_forced(
    model: EvalModel, dialogue: Dialogue, pixels: UInt8Array, *, threshold: float, seed: int
) -> list[TurnOutcome]:
    """The outcome of each turn of a dialogue over frames (F, I, I, 3)."""
    with model.open_stream(seed) as stream:
        return list(_Feeding(model, stream, pixels, threshold).turns(dialogue))


def late_frames(turn: Turn, following: Turn | None) -> range:
    """Indices of the frames after a turn at which a late reply is looked for."""
    if following is None or turn.query is not None:
        return range(0)
    count = num_late_frames(turn.num_frames, following.num_frames)
    return range(following.first_frame, following.first_frame + count)


class _Feeding:
    """Feeds one dialogue to a stream."""

    def __init__(
        self, model: EvalModel, stream: StreamState, pixels: UInt8Array, threshold: float
    ) -> None:
        self._limits = model.limits
        self._protocol = model.config.stream_config
        self._pixels = pixels
        self._threshold = threshold
        self._script = Script(self._protocol, model.tokenizer)
        self._window = KvWindow(self._limits.capacity, evict_fraction=1.0)
        self._stepper = Stepper(stream, model.config, self._window, self._limits.max_step_tokens)

    def turns(self, dialogue: Dialogue) -> Iterator[TurnOutcome]:
        for turn, following in zip_longest(dialogue.turns, dialogue.turns[1:]):
            yield self._turn(turn, following)
        assert not self._window.num_evicted, "a model's window holds any dialogue"

    def _turn(self, turn: Turn, following: Turn | None) -> TurnOutcome:
        pieces = list(self._script.frames(turn))
        opening = pieces[0]
        assert isinstance(opening, Text)
        has_decision = [each.decision is not None for each in pieces if isinstance(each, Shown)]
        spoken = self._show(opening.ids, turn.first_frame, turn.num_frames)
        decisions = [each for each, is_read in zip(spoken, has_decision, strict=True) if is_read]
        late = [] if any(decisions) else self._look_ahead(late_frames(turn, following))
        losses, num_right = self._hear(self._script.reply(turn))
        difference = (
            frame_diff(decisions, late, is_asked=turn.query is not None) if decisions else None
        )
        return TurnOutcome(len(decisions), difference, losses, num_right)

    def _show(self, prefix: Sequence[int], first: int, count: int) -> list[bool]:
        """Feed `count` frames after `prefix`; returns whether the model speaks at each."""
        spoken: list[bool] = []
        end = first + count
        for start in range(first, end, self._limits.frames_per_step):
            stop = min(start + self._limits.frames_per_step, end)
            embeds = self._stepper.state.encode(self._pixels[start:stop])
            closes_sink = self._window.sink_is_open
            logits = self._stepper.feed_frames(prefix, embeds, closes_sink=closes_sink)
            spoken += speaks(logits, self._protocol.silent_id, self._threshold).tolist()
            prefix = self._protocol.interval_ids
        return spoken

    def _look_ahead(self, frames: range) -> list[bool]:
        """Whether the model speaks at each of these frames, which are then removed again."""
        spoken = self._show(self._protocol.interval_ids, frames.start, len(frames))
        self._stepper.take_back_frames(len(frames))
        return spoken

    def _hear(self, text: Text) -> tuple[Float64Array, int]:
        """Feed a reply; returns its tokens' losses (T,) and the number right before a mistake."""
        ids, losses, is_right = text.ids, [], list[bool]()
        first = len(ids) - text.num_learned - 1  # the token before the first learned one
        for start in range(0, len(ids), self._limits.max_step_tokens):
            piece = ids[start : start + self._limits.max_step_tokens]
            self._stepper.feed_text(piece, continues=start > 0)
            asked = range(max(first - start, 0), min(len(piece), len(ids) - 1 - start))
            for place in range(0, len(asked), self._limits.frames_per_step):
                rows = asked[place : place + self._limits.frames_per_step]
                logits = self._stepper.state.logits(rows)
                right = [ids[start + row + 1] for row in rows]
                losses.append(token_losses(logits, right))
                is_right += (logits.argmax(axis=1) == right).tolist()
        return np.concatenate(losses), num_leading(is_right)
