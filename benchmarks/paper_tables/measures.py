"""The tables' contents: measures of a result, means with 95 % intervals, differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.paper_tables.arms import Run
from benchmarks.paper_tables.results import Result
from mod_edge.data.stream_metrics import ratio

# Student's t, two-sided 95 %, for 1, 2, 3, ... degrees of freedom: NIST/SEMATECH e-Handbook of
# Statistical Methods, 1.3.6.7.2, column 0.975.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
MINUS = "\N{MINUS SIGN}"
NOTHING = "-"
NUM_DIGITS = 3

Results = Mapping[Run, Result]


@dataclass(frozen=True)
class Measure:
    """One figure of a result.

    Attributes:
        title: of its column, with the unit.
        part: the part of an evaluation's row that has it.
        key: its key in that part.
        is_higher_better: whether more is better.
        of: key of the count to divide by, if it is a share.
    """

    title: str
    part: str
    key: str
    is_higher_better: bool = True
    of: str | None = None

    def value(self, row: Mapping[str, Any]) -> float | None:
        """The figure in a row of an evaluation, None if missing."""
        value: float | None = row[self.part][self.key]
        if value is None or self.of is None:
            return value
        return ratio(int(value), row[self.part][self.of])


F1 = Measure("F1", "free_running", "f1")
LM_PPL = Measure("LM-PPL", "teacher_forced", "lm_ppl", is_higher_better=False)
ANSWERS = Measure("answers", "free_running", "num_answers_right", of="num_answers")
MEASURES = (
    F1,
    Measure("moment F1", "free_running", "moment_f1"),
    ANSWERS,
    LM_PPL,
    Measure("TimeDiff, s", "teacher_forced", "time_diff_s", is_higher_better=False),
    Measure("Fluency", "teacher_forced", "fluency"),
    Measure("LM-Correctness", "teacher_forced", "lm_correctness"),
)


@dataclass(frozen=True)
class Estimate:
    """The mean of `num_seeds` values, and half its 95 % interval (None for one value)."""

    mean: float
    half_width: float | None
    num_seeds: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of one value per seed (at most ten) with its t interval; None without values."""
    if not values:
        return None
    num_seeds = len(values)
    mean = math.fsum(values) / num_seeds
    if num_seeds == 1:
        return Estimate(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (num_seeds - 1)
    half_width = T_QUANTILES[num_seeds - 2] * math.sqrt(variance / num_seeds)
    return Estimate(mean, half_width, num_seeds)


def values_of(results: Results, arm: str, measure: Measure) -> dict[int, float]:
    """The arm's figure by seed, without missing ones."""
    found = {
        run.seed: measure.value(result.row())
        for run, result in results.items()
        if run.arm.name == arm
    }
    return {seed: value for seed, value in found.items() if value is not None}


def arm_estimate(results: Results, arm: str, measure: Measure) -> Estimate | None:
    """The arm's figure over its seeds."""
    return estimate(list(values_of(results, arm, measure).values()))


def difference(results: Results, arm: str, other: str, measure: Measure) -> Estimate | None:
    """`arm` minus `other`, paired by seed."""
    first, second = (values_of(results, name, measure) for name in (arm, other))
    return estimate([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])


def shown(found: Estimate | None, *, sign: str = "") -> str:
    """Mean and interval, as a table's cell."""
    if found is None:
        return NOTHING
    mean = f"{found.mean:{sign}.{NUM_DIGITS}f}".replace("-", MINUS)
    if found.half_width is None:
        return mean
    return f"{mean} ± {found.half_width:.{NUM_DIGITS}f}"
