"""Measures of a streaming model: what it says, and when. Pure formulas, without a model.

The teacher-forced measures are VideoLLM-online's (`stream_evaluate` in models/modeling_live.py),
turn by turn: a turn is some frames and the reply after them. One rule is added, because that data
has only one question per video, at its start: if a query follows a turn's last frame, silence
before it is right, and the answer cannot be late.

In a free-running stream, captions are matched to the true ones in order, one to one.
"""

import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]

ROUNDING_S = 1e-6  # times are multiples of 1 / fps: an error equal to the tolerance is within it


@dataclass(frozen=True)
class TurnOutcome:
    """A model's outcome in one turn, teacher-forced.

    Attributes:
        num_decisions: S, the turn's frames with a decision to speak or to be silent.
        frame_diff: see `frame_diff`; None if S is 0.
        losses: (T,) cross entropy at the reply's tokens and the end token.
        num_right: the number of these tokens that were the likeliest, before the first mistake.
    """

    num_decisions: int
    frame_diff: int | None
    losses: Float64Array
    num_right: int

    @property
    def has_words(self) -> bool:
        """Whether the reply has words; published turns never have the end token alone."""
        return len(self.losses) > 1

    @property
    def perplexity(self) -> float:
        """LM-PPL: exp of the mean cross entropy; infinite if that overflows."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.losses.mean()))

    @property
    def correctness(self) -> float:
        """LM-Correctness: share of the tokens before the first mistake."""
        return self.num_right / len(self.losses)

    @property
    def fluency(self) -> float | None:
        """Share of decisions and tokens before the first mistake; None if S is 0."""
        if self.frame_diff is None:
            return None
        if self.frame_diff == 0:
            num_fluent = self.num_decisions + self.num_right
        elif self.frame_diff > 0:
            num_fluent = self.num_decisions - self.frame_diff
        else:
            num_fluent = self.num_decisions - 1
        return num_fluent / (self.num_decisions + len(self.losses))


def token_losses(logits: npt.NDArray[Any], token_ids: Sequence[int]) -> Float64Array:
    """Cross entropy (T,) in nats of logits (T, V) at `token_ids` (T,)."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    chosen = wide[np.arange(len(wide)), list(token_ids)]
    losses: Float64Array = np.log(np.exp(wide).sum(axis=1)) - chosen
    return losses


def num_leading(is_right: Sequence[bool]) -> int:
    """The number of True values before the first False."""
    return next((place for place, each in enumerate(is_right) if not each), len(is_right))


def speaks(logits: Logits, silent_id: int, threshold: float) -> BoolArray:
    """(F,) whether a model speaks at frames with logits (F, V) at their last tokens.

    It speaks if the silent token is not the likeliest, or its probability is below `threshold`.
    Unlike the runtime, the published measure counts any other token as the speak token.
    """
    is_other: BoolArray = logits.argmax(axis=1) != silent_id
    probabilities = np.exp(-token_losses(logits, [silent_id] * len(logits)))
    return is_other | (probabilities < threshold)


def num_late_frames(num_frames: int, num_next_frames: int) -> int:
    """M: the number of frames after a turn at which a model may still speak late.

    It equals the number of frames at which it could speak too early, so that chance favours
    neither, but is at most `num_next_frames`, the frames of the next turn.
    """
    return min(num_next_frames, num_frames - 1)


def frame_diff(decisions: Sequence[bool], late: Sequence[bool], *, is_asked: bool) -> int:
    """How many frames before the turn's last one a model speaks first; below 0: after it.

    Args:
        decisions: (S,), S >= 1, whether it speaks at each frame of the turn; with `is_asked`
            without the last frame.
        late: (M,), whether it speaks at the frames after the turn, without the reply in between;
            values after the first True do not matter. Empty with `is_asked`.
        is_asked: whether the reply answers a query.
    """
    if any(decisions):
        return len(decisions) - list(decisions).index(True) - (not is_asked)
    return -(num_leading([not each for each in late]) + any(late))


def words_of(text: str) -> list[str]:
    """The words in lower case, without punctuation.

    Accents and vowel signs belong to their letter. In scripts without spaces between words
    (Chinese, Japanese) each character is a word.
    """
    spaced = "".join(map(_spaced, unicodedata.normalize("NFC", text.lower())))
    words = (word.strip("'") for word in spaced.split())
    return [word for word in words if word]


def _spaced(character: str) -> str:
    """The character if part of a word, with spaces around it if a whole word, else a space."""
    is_part = unicodedata.category(character)[0] in "LMN" or character in "_'"
    is_word = is_part and unicodedata.east_asian_width(character) == "W"
    return f" {character} " if is_word else character if is_part else " "


def is_same(text: str, truth: str, keys: Sequence[str]) -> bool:
    """Whether `text` contains all `keys` as whole words in order; without keys, equal words.

    A truth without any word, such as a single symbol, must match exactly.

    Args:
        text: what was said.
        truth: what should have been said.
        keys: the words that must be right; empty for all words of `truth`.
    """
    words = words_of(text)
    if not keys:
        wanted = words_of(truth)
        return words == wanted if wanted else text.strip() == truth.strip()
    rest = iter(words)
    return all(word in rest for key in keys for word in words_of(key))


def match_in_order(
    said_s: Sequence[float],
    true_s: Sequence[float],
    tolerance_s: float,
    can_match: Callable[[int, int], bool] = lambda _said, _true: True,
) -> list[tuple[int, int]]:
    """One-to-one pairs of said and true moments in order: the most pairs, then the closest.

    Args:
        said_s: rising times in seconds.
        true_s: rising times in seconds.
        tolerance_s: the largest time difference of a pair.
        can_match: whether a said and a true moment, by their indices, may be a pair.

    Returns:
        (index into `said_s`, index into `true_s`), rising in both.
    """
    # best[i][j]: number of pairs and their negated total distance, from said i and true j on
    best = [[(0, 0.0)] * (len(true_s) + 1) for _ in range(len(said_s) + 1)]

    def paired(i: int, j: int) -> tuple[int, float]:
        distance_s = abs(said_s[i] - true_s[j])
        if distance_s > tolerance_s + ROUNDING_S or not can_match(i, j):
            return (-1, 0.0)
        count, negated = best[i + 1][j + 1]
        return (count + 1, negated - distance_s)

    for i in reversed(range(len(said_s))):
        for j in reversed(range(len(true_s))):
            best[i][j] = max(paired(i, j), best[i + 1][j], best[i][j + 1])
    pairs, i, j = [], 0, 0
    while i < len(said_s) and j < len(true_s):
        if best[i][j] == paired(i, j):
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return pairs


def ratio(part: float, whole: int) -> float | None:
    """`part` / `whole`; None if `whole` is 0."""
    return part / whole if whole else None


def mean(values: Sequence[float]) -> float | None:
    """The mean; None without values."""
    return math.fsum(values) / len(values) if values else None


def mean_of_means(groups: Iterable[Sequence[float]]) -> float | None:
    """The mean of the groups' means, without empty groups; None if all are empty."""
    means = [mean(values) for values in groups]
    return mean([each for each in means if each is not None])
