"""Servers that die and come back, and processes that are suspended or share a source: for real."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import islice

import pytest

from mod_edge.errors import SourceError
from mod_edge.runtime.capture.live_capture import LiveCapture
from mod_edge.runtime.capture.source import LIVE
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
        with pytest.raises(SourceError, match=r"no picture came in 0\.5 s and [1-9]\d* attempts"):
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
            child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
            at_end.enter_context(child)
            at_end.callback(child.kill)
            return child

        yield start


def numbers_from(child, num_frames):
    lines = [child.stdout.readline().split() for _ in range(num_frames)]
    return [int(number) for number, *_ in lines], [kind for _, *kinds in lines for kind in kinds]


def test_the_frames_after_a_suspension_are_fresh_and_the_gap_is_told(watching):
    with MjpegServer() as camera:
        child = watching(camera.url)
        numbers_from(child, 5)
        child.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        num_sent = camera.num_sent
        child.send_signal(signal.SIGCONT)
        numbers, kinds = numbers_from(child, 20)
    before = [number for number in numbers if number < num_sent]
    # What the child had taken and what waited in its pipe, then none of the 60 sent meanwhile.
    assert len(before) <= 3
    assert all(number < num_sent - 50 for number in before)
    assert kinds == ["gap"]


def test_two_processes_watch_one_stream(watching):
    with MjpegServer() as camera, LiveCapture(camera.url, fps=20) as live:
        child = watching(camera.url)
        theirs, _ = numbers_from(child, 3)
        ours = [number_in(frame.image) for frame in islice(live, 3)]
    for numbers in (ours, theirs):
        assert numbers == sorted(set(numbers))
