"""Contenders take turns."""

from pathlib import Path

import pytest

from benchmarks.peers.interleaving import STEPS, Step, measure_step
from benchmarks.peers.worker import WorkerError
from benchmarks.peers.workers.line_protocol import MAX_PAST, MAX_STEP

pytestmark = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's procfs")


class Fake:
    """Notes its turns in a list that all share, and fails at turn `fails_at`."""

    def __init__(self, name, turns, fails_at=None):
        self.name, self.turns, self.fails_at = name, turns, fails_at

    def step_times_ms(self, past, tokens, rounds):
        mine = sum(name == self.name for name, *_ in self.turns)
        if mine == self.fails_at:
            raise WorkerError("out of memory")
        self.turns.append((self.name, past, tokens, rounds))
        return [10.0 * mine] * rounds

    def cpu_s(self):
        return 0.0


def test_all_caches_are_filled_before_the_first_timed_round():
    turns = []
    measure_step({name: Fake(name, turns) for name in "abc"}, Step(7, 3, rounds=2))
    assert turns[:3] == [(name, 7, 3, 0) for name in "abc"]
    assert {rounds for *_, rounds in turns[3:]} == {1}


def test_every_second_round_goes_backwards():
    turns = []
    found = measure_step({name: Fake(name, turns) for name in "abc"}, Step(7, 3, rounds=3))
    assert "".join(name for name, *_ in turns[3:]) == "abccbaabc"
    assert found.times_ms == {name: [10.0, 20.0, 30.0] for name in "abc"}
    assert found.failed == {}


def test_a_contender_that_fails_drops_out_and_the_others_go_on():
    turns = []
    workers = {"a": Fake("a", turns, fails_at=2), "b": Fake("b", turns)}
    found = measure_step(workers, Step(7, 3, rounds=3))
    assert found.failed == {"a": "out of memory"}
    assert found.times_ms == {"b": [10.0, 20.0, 30.0]}


def test_cpu_time_of_waiting_contenders_is_counted():
    class Spinning(Fake):
        spun_s = 0.0

        def cpu_s(self):
            Spinning.spun_s += 1e6
            return Spinning.spun_s

    turns = []
    found = measure_step({"a": Fake("a", turns), "b": Spinning("b", turns)}, Step(7, 3, rounds=2))
    assert found.waiting_cores > 0
    assert found.other_cores >= 0


def test_the_measured_steps_fit_the_workers_caches():
    assert max(step.past for step in STEPS) == MAX_PAST
    assert max(step.tokens for step in STEPS) == MAX_STEP
