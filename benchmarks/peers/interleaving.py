"""Measures a step with all contenders in turn, so that whatever else the machine does hits all."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.peers.worker import WorkerError
from mod_edge.bench.other_load import busy_s


@dataclass(frozen=True)
class Step:
    """A measured step: `tokens` after `past`, timed `rounds` times."""

    past: int
    tokens: int
    rounds: int

    @property
    def name(self) -> str:
        """For file names."""
        return f"past-{self.past}-tokens-{self.tokens}"


# A round of the longest steps takes the most time.
STEPS = tuple(
    Step(past, tokens, rounds)
    for past in (1000, 4000)
    for tokens, rounds in ((1, 7), (11, 7), (55, 5))
)


class Timed(Protocol):
    """What is measured: a `Worker`."""

    def step_times_ms(self, past: int, tokens: int, rounds: int) -> list[float]:
        """See `Worker`."""

    def cpu_s(self) -> float:
        """See `Worker`."""


@dataclass
class Interleaved:
    """Measurements of one step.

    Attributes:
        times_ms: by contender, those that failed excluded.
        failed: why the others failed.
        waiting_cores: cores that waiting contenders kept busy, on average.
        other_cores: cores that all other processes of the machine kept busy, on average.
    """

    times_ms: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    waiting_cores: float = 0.0
    other_cores: float = 0.0


def measure_step(workers: Mapping[str, Timed], step: Step) -> Interleaved:
    """A step of every contender in each round; every second round goes backwards.

    A contender's steps then have the same average moment as all others', and two different
    neighbours. A contender that fails drops out.

    Args:
        workers: by contender; only one computes at a time.
        step: what to time. Caches are filled, and what depends on shapes is compiled, before.
    """
    found = Interleaved({name: [] for name in workers})

    def visit(name: str, rounds: int) -> None:
        if name in found.failed:
            return
        try:
            found.times_ms[name] += workers[name].step_times_ms(step.past, step.tokens, rounds)
        except WorkerError as exc:
            found.failed[name] = str(exc)
            del found.times_ms[name]

    for name in workers:
        visit(name, 0)
    waiting_s = ours_s = 0.0
    started, busy_before = time.perf_counter(), busy_s()
    for number in range(step.rounds):
        for name in list(workers)[:: -1 if number % 2 else 1]:
            before = _cpu_s(workers, found.failed)
            visit(name, 1)
            used = {
                key: after - before[key] for key, after in _cpu_s(workers, found.failed).items()
            }
            ours_s += sum(used.values())
            waiting_s += sum(used.values()) - used.get(name, 0.0)
    elapsed_s = time.perf_counter() - started
    found.waiting_cores = waiting_s / elapsed_s
    found.other_cores = max(0.0, (busy_s() - busy_before - ours_s) / elapsed_s)
    return found


def _cpu_s(workers: Mapping[str, Timed], failed: Iterable[str]) -> dict[str, float]:
    return {name: worker.cpu_s() for name, worker in workers.items() if name not in failed}
