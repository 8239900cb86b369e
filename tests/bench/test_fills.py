"""The fills of the window at which steps are measured."""

from mod_edge.bench.bench import fills
from mod_edge.plan.kv_window import Rows


def test_the_full_window_leaves_room_for_the_longest_step():
    assert fills(Rows(4096, 1500), Rows(55, 55)) == [Rows(1000, 366), Rows(4041, 1445)]


def test_a_small_window_is_measured_at_a_quarter():
    assert [past.dense for past in fills(Rows(400, 200), Rows(54, 30))] == [100, 346]


def test_a_window_with_room_for_one_step_alone_has_one_fill():
    assert fills(Rows(60, 40), Rows(54, 30)) == [Rows(6, 4)]
