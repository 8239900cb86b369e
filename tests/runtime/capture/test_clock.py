"""Waits on a clock, which another thread ends."""

import threading

from mod_edge.runtime.capture.clock import Clock, Pause


def test_a_pause_that_another_thread_ends_is_over_at_once_and_for_good():
    clock = Clock()
    pause = Pause(clock)
    threading.Timer(0.02, pause.end).start()
    assert not pause.until(clock.now_s() + 60)
    assert not pause.until(clock.now_s() - 1)


def test_a_time_that_has_passed_is_not_waited_for():
    clock = Clock()
    assert Pause(clock).until(clock.now_s() - 1)
