"""Times of actions that take turns: rounds, warm-up and percentiles.

Every action has one turn in a round, so that what else the machine does hits all of them alike. A
short action runs several times in its turn; the first of these is not counted, because it binds its
shape again after the others, which equal steps of a stream do not.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from mod_edge.progress import OnStep

TURN_S = 0.05  # a turn of a short action takes about this long
MOST_RUNS = 32
MIN_ROUNDS = 5

Action = Callable[[], object]
GraphSeconds = Callable[[], float | None]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one action.

    Attributes:
        p50_ms, p95_ms, p99_ms: percentiles of all runs that were counted.
        num_runs: number of these.
        outside_graphs: share of the time spent outside the graphs, 0..1, on a GPU that in which the
            host did not wait for it; None if the action runs no graphs.
    """

    p50_ms: float
    p95_ms: float
    p99_ms: float
    num_runs: int
    outside_graphs: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields, rounded to a microsecond."""
        fields = asdict(self)
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in fields.items()
        }


def timing_of(times_ms: Sequence[float], outside_graphs: Sequence[float]) -> Timing:
    """The timing of these runs, with the share of each that was outside the graphs, if known."""
    p50, p95, p99 = (float(each) for each in np.percentile(times_ms, (50, 95, 99)))
    return Timing(p50, p95, p99, len(times_ms), median(outside_graphs) if outside_graphs else None)


class Timer:
    """Times one action.

    Attributes:
        name: of the action, for the progress.
        round_medians_ms: a median for each round.
    """

    def __init__(self, name: str, action: Action, graph_seconds: GraphSeconds) -> None:
        """A timer of `action`, which has run before.

        Args:
            name: of the action.
            action: what is timed; it waits until its results are there.
            graph_seconds: the model's `LoadedModel.graph_seconds`.
        """
        self.name = name
        self.round_medians_ms: list[float] = []
        self._action = action
        self._graph_seconds = graph_seconds
        self._times_ms: list[float] = []
        self._outside_graphs: list[float] = []
        self._last_s = TURN_S

    def take_turn(self) -> None:
        """Run the action, a short one several times."""
        num_runs = max(1, min(MOST_RUNS, int(TURN_S / max(self._last_s, 1e-9))))
        if num_runs > 1:
            self._action()
        times_ms = [self._run() for _ in range(num_runs)]
        self._times_ms += times_ms
        self.round_medians_ms.append(median(times_ms))

    def timing(self) -> Timing:
        """Of all turns so far."""
        return timing_of(self._times_ms, self._outside_graphs)

    def _run(self) -> float:
        graphs_before, started = self._graph_seconds(), time.perf_counter()
        self._action()
        self._last_s = wall_s = time.perf_counter() - started
        graphs_after = self._graph_seconds()
        if graphs_before is not None and graphs_after is not None and graphs_after > graphs_before:
            self._outside_graphs.append(1 - (graphs_after - graphs_before) / wall_s)
        return 1000 * wall_s


def take_turns(timers: Sequence[Timer], seconds: float, on_step: OnStep) -> None:
    """Rounds of all timers for `seconds`, and at least `MIN_ROUNDS`.

    Args:
        timers: in the order of their turns.
        seconds: to spend.
        on_step: called before each turn with the seconds spent, at most `seconds`.
    """
    started = time.perf_counter()
    num_rounds = 0
    while num_rounds < MIN_ROUNDS or time.perf_counter() - started < seconds:
        for timer in timers:
            on_step(timer.name, min(time.perf_counter() - started, seconds), seconds)
            timer.take_turn()
        num_rounds += 1
