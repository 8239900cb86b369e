"""Servers that die and come back, and processes that are suspended or share a source: for real."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import islice

import pytest

from mod_edge.errors import SourceError
from mod_edge.runtime.capture.live_capture import LiveCapture
from mod_edge.runtime.capture.source import LIVE
from tests.bounded import BoundedProcess, await_until
from tests.runtime.capture.mjpeg_camera import MjpegServer
from tests.runtime.capture.numbered_video import number_in

pytestmark = pytest.mark.live

RECONNECTING = replace(LIVE, reconnect_s=4.0, stall_s=1.0, max_failed_reads=5)


@pytest.fixture
def quick_retries(monkeypatch):
    """Attempts to open a lost source again, every tenth of a second."""
    monkeypatch.setattr("mod_edge.runtime.capture.reconnect.FIRST_DELAY_S", 0.1)
    monkeypatch.setattr("mod_edge.runtime.capture.reconnect.LONGEST_DELAY_S", 0.1)


@pytest.mark.usefixtures("quick_retries")
def test_a_server_that_goes_away_and_comes_back_with_another_size_is_read_on():
    with MjpegServer() as camera, LiveCapture(camera.url, fps=10, policy=RECONNECTING) as live:
        before = list(islice(live, 3))[-1]
        camera.scale = 2
        camera.is_down.set()
        threading.Timer(0.5, camera.is_down.clear).start()
        after = next(live)
        kinds = {event.kind: event for event in live.take_events()}
        counts = live.counts
    assert before.image.shape == (64, 64, 3)
    assert after.image.shape == (128, 128, 3)
    assert after.time_s > before.time_s + 0.4
    assert (kinds["size"].width, kinds["size"].old_width) == (128, 64)
    assert "reads in a row failed" in kinds["lost"].reason
    assert kinds["gap"].num_attempts >= 1
    assert counts.num_taken + counts.num_discarded == counts.num_captured


@pytest.mark.usefixtures("quick_retries")
def test_a_server_that_stays_away_is_an_error_when_the_time_is_used_up():
    policy = replace(RECONNECTING, reconnect_s=0.5)
    with MjpegServer() as camera, LiveCapture(camera.url, fps=10, policy=policy) as live:
        next(live)
        camera.is_down.set()
        says = r"no picture came in 0\.5 s and [1-9]\d* attempts .*\(127\.0\.0\.1 answers at port"
        with pytest.raises(SourceError, match=says):
            list(live)


def test_a_server_that_sends_garbage_is_an_error_within_the_timeout():
    policy = replace(LIVE, stall_s=1.0)
    with MjpegServer() as camera, LiveCapture(camera.url, fps=10, policy=policy) as live:
        next(live)
        camera.is_garbled.set()
        with pytest.raises(SourceError, match=r"delivered no frame for|ended after"):
            list(live)


@pytest.mark.usefixtures("quick_retries")
def test_garbage_that_ends_is_survived():
    policy = replace(RECONNECTING, stall_s=0.5, reconnect_s=10.0)
    with MjpegServer() as camera, LiveCapture(camera.url, fps=10, policy=policy) as live:
        next(live)
        camera.is_garbled.set()
        threading.Timer(1.0, camera.is_garbled.clear).start()
        times_s = [frame.time_s for frame in islice(live, 8)]
        assert [event.kind for event in live.take_events()][-1] == "gap"
    assert times_s[-1] > 1.0


# ---- processes ----

CHILD = """
import sys
from mod_edge.runtime.capture.live_capture import LiveCapture
with LiveCapture(sys.argv[1], fps=20) as live:
    for frame in live:
        bits = frame.image.reshape(4, 16, 4, 16, 3).mean(axis=(1, 3, 4)).ravel() > 127
        kinds = [event.kind for event in live.take_events()]
        print(sum(1 << bit for bit, is_set in enumerate(bits) if is_set), *kinds, flush=True)
"""


@pytest.fixture
def watching(tmp_path):
    """`watching(url)`: a process that prints the numbers of the pictures that it takes."""
    with contextlib.ExitStack() as at_end:

        def start(url):
            command = [sys.executable, "-c", CHILD, url]
            child = BoundedProcess(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
            at_end.enter_context(child)
            at_end.callback(child.kill)
            return child

        yield start


def next_frame(child):
    """The number of the picture, and the kinds of events before it."""
    number, *kinds = child.next_line().split()
    return int(number), kinds


def test_the_frames_after_a_suspension_are_fresh_and_the_gap_is_told(watching):
    numbers, kinds = [], []
    with MjpegServer() as camera:
        child = watching(camera.url)
        for _ in range(5):  # enough to know the usual interval, without which there is no gap
            next_frame(child)
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        num_before = camera.num_sent + 1  # one may have been sent and not counted yet
        await_until(lambda: camera.num_sent >= num_before + 60)  # in 1.5 s or more: a gap
        num_sent = camera.num_sent
        child.send_signal(signal.SIGCONT)
        while not numbers or numbers[-1] < num_sent + 5:
            number, more = next_frame(child)
            numbers.append(number)
            kinds += more
    assert not [number for number in numbers if num_before <= number < num_sent]
    assert kinds == ["gap"]


def test_two_processes_watch_one_stream(watching):
    with MjpegServer() as camera, LiveCapture(camera.url, fps=20) as live:
        child = watching(camera.url)
        theirs = [next_frame(child)[0] for _ in range(3)]
        ours = [number_in(frame.image) for frame in islice(live, 3)]
    for numbers in (ours, theirs):
        assert numbers == sorted(set(numbers))
