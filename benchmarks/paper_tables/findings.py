"""Which way a comparison came out, as sentences by rule from the figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.paper_tables.arms import ARMS, Run
from benchmarks.paper_tables.intervals import Estimate, estimate
from benchmarks.paper_tables.results import Result
from mod_edge.data.stream_metrics import ratio

MINUS = "\N{MINUS SIGN}"
NOTHING = "-"
NUM_DIGITS = 3


@dataclass(frozen=True)
class Measure:
    """One figure of a result.

    Attributes:
        title: of its column, with the unit.
        part: of an evaluation's row.
        key: in that part.
        is_higher_better: whether more is better.
        of: key of the count that it is a share of; None where it is none.
    """

    title: str
    part: str
    key: str
    is_higher_better: bool = True
    of: str | None = None

    def value(self, row: Mapping[str, Any]) -> float | None:
        """In a row of an evaluation; None where it says nothing."""
        value: float | None = row[self.part][self.key]
        if value is None or self.of is None:
            return value
        return ratio(int(value), row[self.part][self.of])

    def format(self, found: Estimate | None, *, sign: str = "") -> str:
        """Mean and interval."""
        if found is None:
            return NOTHING
        mean = f"{found.mean:{sign}.{NUM_DIGITS}f}".replace("-", MINUS)
        if found.half_width is None:
            return mean
        return f"{mean} ± {found.half_width:.{NUM_DIGITS}f}"


F1 = Measure("F1", "free_running", "f1")
MOMENT_F1 = Measure("moment F1", "free_running", "moment_f1")
LM_PPL = Measure("LM-PPL", "teacher_forced", "lm_ppl", is_higher_better=False)
TIME_DIFF = Measure("TimeDiff, s", "teacher_forced", "time_diff_s", is_higher_better=False)
FLUENCY = Measure("Fluency", "teacher_forced", "fluency")
LM_CORRECTNESS = Measure("LM-Correctness", "teacher_forced", "lm_correctness")
ANSWERS = Measure("answers", "free_running", "num_answers_right", of="num_answers")
MEASURES = (F1, MOMENT_F1, ANSWERS, LM_PPL, TIME_DIFF, FLUENCY, LM_CORRECTNESS)
# The one that a sentence is about: a model left to itself has to speak in time and be right.
JUDGE = F1


@dataclass(frozen=True)
class Claim:
    """A comparison of two arms; `expected` is the first one's place in the paper, None if unseen.

    "equal" means nearly so, "better" that the first is ahead.
    """

    ours: str
    other: str
    expected: str | None


@dataclass(frozen=True)
class Question:
    """A table of the page.

    Attributes:
        title: its heading.
        paper: what the paper says, in sentences.
        arms: its lines.
        claims: the comparisons that its sentence is about.
    """

    title: str
    paper: str
    arms: tuple[str, ...]
    claims: tuple[Claim, ...]


QUESTIONS = (
    Question(
        "Table 1: MoD and other ways to compute less",
        "In the paper MoD is level with full computation (on Ego4D LM-PPL 2.41 and 2.40, TimeDiff "
        "2.04 s and 2.04 to 2.05 s, Fluency 45.2 % and 45.3 %, LM-Correctness 48.9 % and 49.0 %, "
        "as later papers quote it) and early exit falls far behind; its line for layer skip we "
        "have not seen.",
        ("full", "mod", "early-exit", "layer-skip"),
        (
            Claim("mod", "full", "equal"),
            Claim("mod", "early-exit", "better"),
            Claim("mod", "layer-skip", None),
        ),
    ),
    Question(
        "Table 2: which layers",
        "In the paper interleaved, here called MoD, is the best trade-off. We read that as: better "
        "than what computes less (all-deep, all layers), level with what computes more "
        "(interleaved-deep).",
        ("mod", "interleaved-deep", "all-deep", "all"),
        (
            Claim("mod", "interleaved-deep", "equal"),
            Claim("mod", "all-deep", "better"),
            Claim("mod", "all", "better"),
        ),
    ),
    Question(
        "Table 3: which tokens",
        "In the paper learned selection, here called MoD, is ahead of uniform and random selection "
        "of as many tokens.",
        ("mod", "uniform", "random"),
        (Claim("mod", "uniform", "better"), Claim("mod", "random", "better")),
    ),
    Question(
        "What the router's weight scales",
        "The paper's code scales the whole output of a MoD layer, as MoD does here; delta scaling, "
        "of what the layer adds, is the classic form of Mixture-of-Depths. The paper has no "
        "figures for it.",
        ("mod", "delta"),
        (Claim("mod", "delta", None),),
    ),
)

SEEN = {
    "better": "{ours} is better than {other}",
    "worse": "{ours} is worse than {other}",
    "open": "{ours} and {other} cannot be told apart here",
    "single": "{ours} and {other} share only one seed, which does not tell them apart",
    "missing": "{ours} and {other} have not both been run",
}
EXPECTED = {
    "equal": "where the paper has them level",
    "better": "where the paper has {ours} ahead",
    None: "for which we have no figure of the paper",
}
AS_EXPECTED = {("equal", "open"), ("better", "better")}

Results = Mapping[Run, Result]


def values_of(results: Results, arm: str, measure: Measure) -> dict[int, float]:
    """The arm's figure by seed, those left out that say nothing."""
    found = {
        run.seed: measure.value(result.row())
        for run, result in results.items()
        if run.arm.name == arm
    }
    return {seed: value for seed, value in found.items() if value is not None}


def arm_estimate(results: Results, arm: str, measure: Measure) -> Estimate | None:
    """The arm's figure over its seeds."""
    return estimate(list(values_of(results, arm, measure).values()))


def difference(results: Results, claim: Claim, measure: Measure) -> Estimate | None:
    """Ours less the other over the seeds that both have, seed by seed."""
    ours = values_of(results, claim.ours, measure)
    other = values_of(results, claim.other, measure)
    return estimate([ours[seed] - other[seed] for seed in sorted(ours.keys() & other.keys())])


def outcome(found: Estimate | None, measure: Measure) -> str:
    """Which of `SEEN` a difference is: whether its interval leaves 0 out, and on which side."""
    if found is None:
        return "missing"
    if found.half_width is None:
        return "single"
    if abs(found.mean) <= found.half_width:
        return "open"
    return "better" if (found.mean > 0) == measure.is_higher_better else "worse"


def sentence(results: Results, question: Question) -> str:
    """How the question's claims came out, in one sentence."""
    parts = "; ".join(_claim_in_words(results, claim) for claim in question.claims)
    return f"{parts[0].upper()}{parts[1:]}."


def _claim_in_words(results: Results, claim: Claim) -> str:
    names = {"ours": ARMS[claim.ours].title, "other": ARMS[claim.other].title}
    found = difference(results, claim, JUDGE)
    seen = outcome(found, JUDGE)
    words = SEEN[seen].format(**names)
    if found is not None:
        words += f" ({JUDGE.title} {JUDGE.format(found, sign='+')})"
    if seen in ("single", "missing"):
        return words
    if (claim.expected, seen) in AS_EXPECTED:
        return f"{words}, as in the paper"
    return f"{words}, {EXPECTED[claim.expected].format(**names)}"
