"""Timers that take turns."""

from itertools import count

import pytest

from mod_edge.bench import timing
from mod_edge.bench.timing import MIN_ROUNDS, Timer, take_turns, timing_of


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until an action adds seconds to `clock[0]`."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def timer_of(clock, seconds, *, graph_share=0.0, name="step"):
    """A timer of an action that takes these seconds, and that share of them in graphs."""
    graphs = [0.0]

    def action():
        clock[0] += seconds
        graphs[0] += graph_share * seconds

    return Timer(name, action, lambda: graphs[0])


def test_percentiles_are_those_of_all_runs():
    found = timing_of([float(number) for number in range(101)], [])
    assert (found.p50_ms, found.p95_ms, found.p99_ms, found.num_runs) == (50, 95, 99, 101)
    assert found.outside_graphs is None


def test_the_share_outside_the_graphs_is_the_median_of_the_runs():
    assert timing_of([1.0, 1.0, 1.0], [0.1, 0.9, 0.2]).outside_graphs == 0.2


def test_a_timer_tells_graphs_and_the_rest_apart(clock):
    timer = timer_of(clock, 0.4, graph_share=0.75)
    timer.take_turn()
    found = timer.timing()
    assert found.p50_ms == pytest.approx(400)
    assert found.outside_graphs == pytest.approx(0.25)


def test_an_action_without_graphs_has_no_share(clock):
    timer = timer_of(clock, 0.4)
    timer.take_turn()
    assert timer.timing().outside_graphs is None


def test_a_short_action_runs_several_times_in_a_turn_and_the_first_is_not_counted(clock):
    runs = count()

    def action():
        clock[0] += 1.0 if next(runs) == 1 else 0.01  # the first run of the second turn is slow

    timer = Timer("step", action, lambda: None)
    timer.take_turn()
    timer.take_turn()
    assert timer.timing().num_runs == 1 + 5
    assert timer.timing().p99_ms == pytest.approx(10)
    assert timer.round_medians_ms == pytest.approx([10, 10])


def test_timers_take_turns(clock):
    timers = [timer_of(clock, 1.0, name="first"), timer_of(clock, 2.0, name="second")]
    steps = []
    take_turns(timers, 1.0, lambda name, done, total: steps.append((name, done, total)))
    assert [name for name, *_ in steps] == ["first", "second"] * MIN_ROUNDS
    assert steps[0] == ("first", 0, 1)
    assert max(done for _, done, _ in steps) == 1
    assert [len(timer.round_medians_ms) for timer in timers] == [MIN_ROUNDS] * 2


def test_rounds_go_on_until_the_time_is_spent(clock):
    timer = timer_of(clock, 1.0)
    take_turns([timer], 20.0, lambda *_: None)
    assert len(timer.round_medians_ms) == 20
