"""A camera that fails, comes back, changes its size, freezes: a stand-in plays each from a script.

What V4L2 does is played; no device is read. The clock is the test's, so nothing waits.
"""

import math
import os
import random
import threading
from dataclasses import replace
from itertools import islice

import cv2
import numpy as np
import pytest

from mod_edge.errors import ConfigError, SourceError
from mod_edge.runtime.capture import capture_thread
from mod_edge.runtime.capture.capture_thread import HUNG_OPEN_S
from mod_edge.runtime.capture.live_source import (
    FrozenEvent,
    GapEvent,
    LostEvent,
    SizeEvent,
    UnfrozenEvent,
)
from mod_edge.runtime.capture.reconnect import LONGEST_DELAY_S, parse_reconnect, retry_delays_s
from mod_edge.runtime.capture.source import LIVE, Keep
from tests.runtime.capture.numbered_video import number_in
from tests.runtime.capture.scripted_camera import NO_PICTURE, ScriptedCamera, ScriptedCapture
from tests.runtime.test_talk import silent_session

ONCE_LOST = replace(LIVE, settle_s=0.0, max_failed_reads=3)
A_MINUTE = replace(ONCE_LOST, reconnect_s=60.0)
FOREVER = replace(ONCE_LOST, reconnect_s=math.inf)


def begun(camera, policy, source=0):
    """A capture whose first picture was taken."""
    live = camera.live(source, policy=policy)
    camera.sends(0, every_s=0.0)
    assert next(live).time_s == 0
    return live


def test_without_reconnect_a_loss_is_an_error_that_names_the_option(camera):
    live = begun(camera, ONCE_LOST)
    camera.fails(3)
    with pytest.raises(SourceError, match=r"ended after 1 frames.*; --reconnect 60s opens a lost"):
        next(live)
    assert camera.num_opened == 1


def test_a_lost_source_is_opened_again_and_its_clock_goes_on(camera):
    live = begun(camera, A_MINUTE)
    camera.sends(1, every_s=0.5)
    assert next(live).time_s == 0.5
    camera.fails(3)  # lost, and opened again at once
    assert camera.num_opened == 2
    camera.sends(2, every_s=4.0)
    frame = next(live)
    assert number_in(frame.image) == 2
    assert frame.time_s == pytest.approx(camera.clock.passed_s, abs=0.25)  # the nearest instant
    lost, gap = live.take_events()
    assert isinstance(lost, LostEvent)
    assert "camera 0 ended after 2 frames (3 reads in a row failed)" in lost.reason
    assert isinstance(gap, GapEvent)
    assert (gap.num_attempts, gap.reason) == (1, lost.reason)
    assert gap.gap_s == pytest.approx(camera.clock.passed_s - 0.5, abs=0.001)
    assert live.take_events() == []
    assert live.warnings[-1] == f"camera 0: 1 gap without pictures, {gap.gap_s:.1f} s together"


def test_a_loss_is_told_before_the_source_is_back(camera):
    live = begun(camera, FOREVER)
    camera.fails(3)
    assert live.is_ready
    live.wait()
    (lost,) = live.take_events()
    assert (lost.kind, lost.at) == ("lost", "2026-05-01T12:00:00.040Z")
    assert not live.is_ready
    assert live.num_waiting == 0


def test_a_loss_is_told_after_the_frames_that_waited_before_it(camera):
    live = begun(camera, replace(FOREVER, keep=Keep("queue", 5)))
    camera.sends(1, 2, every_s=0.5)
    camera.fails(3)
    told = []
    for _ in range(2):
        told += [event.kind for event in live.take_events()]
        told.append(next(live).time_s)
    told += [event.kind for event in live.take_events()]
    assert told == [0.5, 1.0, "lost"]


def test_attempts_go_on_while_the_source_is_away(camera, monkeypatch):
    live, opening = begun(camera, FOREVER), camera.open

    def comes_back_at_the_seventh(*arguments):
        camera.is_there = camera.num_opened >= 2 * 7 - 1  # V4L2, then any backend
        return opening(*arguments)

    monkeypatch.setattr(cv2, "VideoCapture", comes_back_at_the_seventh)
    camera.fails(3)
    camera.sends(1, every_s=0.1)
    assert number_in(next(live).image) == 1
    _, gap = live.take_events()
    assert gap.num_attempts == 7
    # 0.5 + 1 + 2 + 4 + 8 + 16 + 30 s, each shortened by up to a half
    assert 30.7 < gap.gap_s < 61.8


def test_a_source_that_stays_away_is_an_error_once_the_time_is_used_up(camera):
    live = begun(camera, A_MINUTE)
    lost_s = camera.clock.passed_s
    camera.is_there = False
    camera.fails(3)
    says = (
        r"camera 0 ended after 1 frames.*; no picture came in 60 s and \d+ attempts to open it "
        r"again, last: camera 0 cannot be opened.*; raise --reconnect or use --reconnect forever"
    )
    with pytest.raises(SourceError, match=says):
        next(live)
    assert 60 <= camera.clock.passed_s - lost_s < 62
    assert [event.kind for event in live.take_events()] == ["lost"]


def test_a_source_that_opens_but_never_delivers_uses_up_the_time_too(camera):
    live = begun(camera, A_MINUTE)
    for _ in range(40):
        camera.fails(3, every_s=1.0)
    with pytest.raises(SourceError, match=r"in 60 s and \d+ attempts .*last: camera 0 ended"):
        next(live)
    assert [event.kind for event in live.take_events()] == ["lost"]


def test_a_source_whose_pictures_cannot_be_converted_uses_up_the_time_too(camera):
    live = begun(camera, A_MINUTE)
    camera.fails(3)
    for _ in range(40):
        camera.sends(*[NO_PICTURE] * 3, every_s=1.0)
    with pytest.raises(SourceError, match=r"in 60 s and \d+ attempts"):
        next(live)
    assert [event.kind for event in live.take_events()] == ["lost"]


def test_a_gap_lasts_until_a_picture_that_can_be_converted(camera):
    live = begun(camera, FOREVER)
    camera.fails(3)
    camera.sends(NO_PICTURE, NO_PICTURE, 1, every_s=1.0)
    next(live)
    _, gap = live.take_events()
    assert gap.gap_s == pytest.approx(camera.clock.passed_s, abs=0.001)


def test_seconds_without_pictures_are_not_frozen_ones(camera):
    live = begun(camera, replace(FOREVER, frozen_after_s=2.0))
    camera.fails(3)
    camera.sends(0, every_s=4.0)
    camera.sends(0, every_s=0.5)
    assert [event.kind for event in live.take_events()] == ["lost", "gap"]


def test_a_stall_is_a_loss_too(camera):
    live = begun(camera, FOREVER)
    camera.fails(every_s=5.0)
    camera.sends(1, every_s=0.1)
    assert number_in(next(live).image) == 1
    lost, gap = live.take_events()
    assert "delivered no frame for 5.0 s" in lost.reason
    assert 5.0 < gap.gap_s < 6.0


def test_a_read_that_never_returns_is_left_and_the_source_opened_again(camera):
    live = begun(camera, FOREVER)
    hung = live._reading.thread
    camera.hangs()
    assert not live.is_ready  # the caller begins to wait
    camera.clock.passed_s += 6.1
    assert not live.is_ready or live._reading.events
    camera.await_reader()
    (lost,) = live.take_events()
    assert "delivered no frame for 6.1 s" in lost.reason
    camera.sends(1, every_s=0.1)
    assert number_in(next(live).image) == 1
    assert [event.kind for event in live.take_events()] == ["gap"]
    camera.close()
    hung.join(5.0)
    assert not hung.is_alive()
    assert list(live) == []


def test_an_opening_that_never_returns_is_left_and_uses_up_the_time(camera, monkeypatch):
    live, opens, may_return = begun(camera, A_MINUTE), threading.Semaphore(0), threading.Event()

    def hangs(*_):
        opens.release()
        assert may_return.wait(10.0)
        return camera.open()

    monkeypatch.setattr(cv2, "VideoCapture", hangs)
    for _ in range(3):
        camera._answers.put(None)
    for _ in range(2):
        assert opens.acquire(timeout=10.0)
        live.take_events()
        assert not live.is_ready
        camera.clock.passed_s += HUNG_OPEN_S + 0.1
        assert not live.is_ready  # the caller saw that it hangs
    live._reading.thread.join(10.0)
    with pytest.raises(SourceError, match=r"in 60 s and 2 attempts.*last: opening camera 0 took"):
        list(live)
    may_return.set()
    for thread in live._reading._hung:
        thread.join(10.0)
        assert not thread.is_alive()


def test_no_more_than_some_reads_hang_at_a_time(camera, monkeypatch):
    monkeypatch.setattr(capture_thread, "MAX_HUNG", 1)
    live = begun(camera, A_MINUTE)
    camera.hangs()
    assert not live.is_ready
    camera.clock.passed_s += 6.1
    assert not live.is_ready or live._reading.events
    live._reading.thread.join(10.0)
    with pytest.raises(SourceError, match=r"0 attempts .*last: 1 earlier connections still hang"):
        list(live)
    assert camera.num_opened == 1


def test_a_reader_that_was_left_does_not_open_the_source_again(camera, monkeypatch):
    live = begun(camera, FOREVER)
    old = live._reading.thread

    def takes_long(_):
        release.set()
        assert left.wait(10.0)

    release, left = threading.Event(), threading.Event()
    monkeypatch.setattr(ScriptedCapture, "release", takes_long)
    for _ in range(3):
        camera._answers.put(None)
    assert release.wait(10.0)
    live._reading.thread = threading.current_thread()  # the caller left it meanwhile
    left.set()
    old.join(10.0)
    assert not old.is_alive()
    assert camera.num_opened == 1
    live._reading.thread = old


def test_an_error_when_the_source_is_released_still_ends_the_iteration(camera, monkeypatch):
    live = begun(camera, ONCE_LOST)

    def breaks(_):
        raise cv2.error("released twice")

    monkeypatch.setattr(ScriptedCapture, "release", breaks)
    camera.fails(3)
    with pytest.raises(SourceError, match="cannot be read any more: released twice"):
        next(live)


def test_a_picture_whose_conversion_raises_is_a_failed_read(camera, monkeypatch):
    live, retrieve = begun(camera, FOREVER), ScriptedCapture.retrieve

    def raises(_):
        raise cv2.error("damaged")

    monkeypatch.setattr(ScriptedCapture, "retrieve", raises)
    camera.sends(1, every_s=0.5)
    monkeypatch.setattr(ScriptedCapture, "retrieve", retrieve)
    camera.sends(2, every_s=0.5)
    assert number_in(next(live).image) == 2
    assert live.counts.num_skipped_reads == 1


def test_what_a_source_had_buffered_is_dropped_when_it_comes_back(camera):
    live = begun(camera, replace(FOREVER, settle_s=0.25))
    camera.fails(3)
    camera.sends(*range(1, 10), every_s=0.01)
    assert not live.num_waiting
    camera.sends(10, every_s=0.5)
    assert number_in(next(live).image) == 10
    counts = live.counts
    assert counts.num_settling == 9
    assert counts.num_taken + counts.num_discarded == counts.num_captured == 11


def test_what_others_print_while_a_source_is_opened_again_is_not_lost(camera, monkeypatch, capfd):
    live = begun(camera, A_MINUTE)

    def prints(*_):
        os.write(2, b"the disk is full\n")  # as another thread would
        return camera.open()

    monkeypatch.setattr(cv2, "VideoCapture", prints)
    camera.fails(3)
    assert [event.kind for event in live.take_events()] == ["lost"]
    assert capfd.readouterr().err == "the disk is full\n"


def test_warnings_of_the_format_are_told_when_the_source_is_opened_again(camera, monkeypatch):
    live, open_live = begun(camera, A_MINUTE), capture_thread.open_live

    def warns(*arguments, **options):
        return open_live(*arguments, **options)._replace(warnings=["camera 0 delivers 8 frames/s"])

    monkeypatch.setattr(capture_thread, "open_live", warns)
    camera.fails(3)
    camera.fails(3)
    assert live.warnings == ["camera 0 delivers 8 frames/s"]


def test_closing_ends_the_attempts(camera):
    live = begun(camera, FOREVER)
    camera.close()
    assert list(live) == []
    assert not live._reading.thread.is_alive()


def test_stopping_the_session_of_a_lost_source_ends_its_stream_at_once(camera):
    live = begun(camera, FOREVER)
    session = silent_session()
    session.begin(live)
    camera.fails(3)
    assert [event.kind for event in live.take_events()] == ["lost"]
    assert not live.is_ready  # a caller waits, however long it takes
    session.stop()
    assert live.is_ready
    live.wait()
    assert list(live) == []


def test_a_reader_ends_with_the_last_frame_that_is_wanted(camera):
    live = camera.live(policy=ONCE_LOST, max_frames=1)
    camera.sends(0, every_s=0.0)
    next(live)
    camera.sends(1, every_s=0.5)
    live._reading.thread.join(5.0)
    assert not live._reading.thread.is_alive()


def test_a_stream_that_has_become_a_recording_is_not_played_from_its_beginning(camera):
    live = begun(camera, FOREVER, "rtsp://camera/1")
    camera.num_frames = 300  # known, so it has an end
    camera.fails(3)
    with pytest.raises(SourceError, match="has become a recording"):
        next(live)


def test_an_error_in_the_reading_thread_is_not_answered_by_reconnecting(camera):
    live = begun(camera, FOREVER)
    camera.breaks(MemoryError("no memory"))
    with pytest.raises(SourceError, match="cannot be read any more: no memory"):
        next(live)
    assert camera.num_opened == 1


# ---- what a picture shows ----


def test_another_size_is_taken_and_told(camera):
    live = begun(camera, ONCE_LOST)
    camera.sends(np.zeros((30, 50, 3), np.uint8), every_s=0.5)
    assert next(live).image.shape == (30, 50, 3)
    (event,) = live.take_events()
    assert event == SizeEvent(0.5, 50, 30, 64, 64, at="2026-05-01T12:00:00.500Z")


def test_a_frozen_picture_is_told_once_and_so_is_its_end(camera):
    live = begun(camera, replace(ONCE_LOST, frozen_after_s=2.0))
    for number in (7, 7, 7, 7, 7, 7, 7, 7, 8, 9):
        camera.sends(number, every_s=0.5)
        next(live)
    frozen, unfrozen = live.take_events()
    assert (type(frozen), frozen.time_s, frozen.frozen_s) == (FrozenEvent, 3.0, 2.5)
    assert (type(unfrozen), unfrozen.time_s, unfrozen.frozen_s) == (UnfrozenEvent, 4.5, 4.0)
    assert live.warnings == ["camera 0: the picture froze once"]


def test_a_still_scene_is_no_warning_unless_asked_for(camera):
    live = begun(camera, ONCE_LOST)
    for _ in range(20):
        camera.sends(7, every_s=0.5)
        next(live)
    assert live.take_events() == []


# ---- times ----


def test_a_clock_that_is_set_moves_at_and_never_time_s(camera):
    live = begun(camera, ONCE_LOST)
    camera.clock.set_by_s = -3600.0
    camera.sends(1, every_s=0.5)
    frame = next(live)
    assert frame.time_s == 0.5
    assert frame.at.isoformat() == "2026-05-01T11:00:00.500000+00:00"


def test_an_image_is_converted_only_if_it_is_kept(camera):
    live = begun(camera, ONCE_LOST)
    converted = camera.num_converted
    for number in range(1, 31):  # 30/s for 1 s at 2 frames/s
        camera.sends(number, every_s=1 / 30)
        if live.num_waiting:
            next(live)
    assert camera.num_converted - converted == 2
    counts = live.counts
    assert (counts.num_captured, counts.num_taken, counts.num_between) == (31, 3, 28)


# ---- the option ----


def test_delays_double_and_differ():
    delays_s = list(islice(retry_delays_s(random.Random(1)), 12))
    longest_s = [min(0.5 * 2**number, LONGEST_DELAY_S) for number in range(12)]
    assert all(most / 2 <= each <= most for each, most in zip(delays_s, longest_s, strict=True))
    assert delays_s != list(islice(retry_delays_s(random.Random(2)), 12))


@pytest.mark.parametrize(
    ("text", "seconds"), [("off", 0), ("forever", math.inf), ("60s", 60), ("1.5s", 1.5)]
)
def test_how_long_to_try_is_seconds_or_a_word(text, seconds):
    assert parse_reconnect(text) == seconds


@pytest.mark.parametrize("text", ["", "60", "0s", "-1s", "1m", "on", "never"])
def test_another_time_is_an_error_that_says_what_is_wanted(text):
    with pytest.raises(ConfigError, match=r"wanted off, forever, or a number of seconds"):
        parse_reconnect(text)


def test_the_stand_in_has_what_the_capture_calls():
    calls = {"isOpened", "get", "grab", "retrieve", "release"}
    assert all(hasattr(ScriptedCamera().open(), name) for name in calls)
    assert all(hasattr(cv2.VideoCapture, name) for name in calls)
