"""What a stream tells the service manager, on a fake clock."""

from types import SimpleNamespace

import pytest

from mod_edge.commands import service_view
from mod_edge.commands.service_view import ServiceView
from mod_edge.plan.protocol import Decision
from mod_edge.runtime.events import FrameEvent, RollEvent

WATCHDOG_S = 8.0
SUMMARY = SimpleNamespace(num_frames=3, fps=1.95, num_dropped=2, num_replies=1, cache_fill=0.42)
STATUS = "3 frames at 1.95 frames/s, 2 dropped, 1 replies, cache 42% full"


class Recorder:
    """A service manager that keeps what it is told."""

    def __init__(self, watchdog_s):
        self.watchdog_s = watchdog_s
        self.told = []

    def ready(self):
        self.told.append("READY")

    def show_status(self, text):
        self.told.append(text)

    def keep_alive(self):
        self.told.append("WATCHDOG")


@pytest.fixture
def clock(monkeypatch):
    """`clock.now_s` is the time."""
    clock = SimpleNamespace(now_s=1000.0)
    clock.monotonic = lambda: clock.now_s
    monkeypatch.setattr(service_view, "time", clock)
    return clock


@pytest.fixture
def manager():
    return Recorder(WATCHDOG_S)


@pytest.fixture
def view(clock, manager):
    with ServiceView(SimpleNamespace(summary=lambda: SUMMARY), manager) as entered:
        yield entered


def frame(index):
    return FrameEvent(index / 2, index, Decision.SILENT, 0.1, 1.0, 2.0, 0.1, 0)


def test_the_service_is_ready_at_the_first_frame_and_only_then(view, manager):
    view.show(RollEvent(0.0, 1, 2, 0.5))
    assert manager.told == []
    view.show(frame(0))
    view.show(frame(1))
    assert manager.told == ["READY", "WATCHDOG", STATUS]


def test_frames_keep_the_watchdog_quiet_four_times_in_its_time(view, manager, clock):
    for index in range(16):
        view.show(frame(index))
        clock.now_s += 0.5
    assert manager.told.count("WATCHDOG") == 4
    assert manager.told.count("READY") == 1
    assert manager.told.count(STATUS) == 2


def test_without_frames_there_is_no_sign_of_life(view, manager, clock):
    view.show(frame(0))
    manager.told.clear()
    clock.now_s += WATCHDOG_S
    view.show(RollEvent(0.0, 1, 2, 0.5))
    assert manager.told == []


def test_without_a_watchdog_nothing_is_sent_to_it(clock):
    manager = Recorder(None)
    with ServiceView(SimpleNamespace(summary=lambda: SUMMARY), manager) as view:
        view.show(frame(0))
    assert manager.told == ["READY", STATUS]


def test_the_last_status_is_that_of_the_summary_with_the_streams_name(clock, manager):
    session = SimpleNamespace(summary=lambda: SUMMARY)
    for name in ("", "door"):
        with ServiceView(session, manager, stream=name) as view:
            view.finish(SUMMARY)
    assert manager.told == [STATUS, f"door: {STATUS}"]
