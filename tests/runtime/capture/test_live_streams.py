"""RTSP and UDP streams that stall, end or pause, served by other processes."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from mod_edge.errors import SourceError
from mod_edge.runtime.capture import reconnect
from mod_edge.runtime.capture.live_capture import LiveCapture
from mod_edge.runtime.capture.open_source import open_source
from mod_edge.runtime.capture.source import LIVE
from tests.bounded import BoundedProcess
from tests.runtime.capture import rtsp_camera

DEBIAN_PYTHON = Path("/usr/bin/python3")  # its packages hold GStreamer's bindings
POLICY = replace(LIVE, stall_s=1.0)

pytestmark = pytest.mark.live


@contextmanager
def rtsp_server(port="0"):
    """The process of an RTSP camera, and its port; 0 takes a free one."""
    if not DEBIAN_PYTHON.exists():
        pytest.skip(f"needs {DEBIAN_PYTHON}; on Debian: apt-get install {rtsp_camera.PACKAGES}")
    command = [DEBIAN_PYTHON, rtsp_camera.__file__, port]
    with BoundedProcess(command, stdout=subprocess.PIPE, text=True) as process:
        port = process.stdout.readline().strip()
        if not port and process.wait() == rtsp_camera.MISSING:
            pytest.skip(f"needs GStreamer; on Debian: apt-get install {rtsp_camera.PACKAGES}")
        yield process, port
        process.kill()


@pytest.fixture
def rtsp():
    """The process of an RTSP camera, and its address."""
    with rtsp_server() as (process, port):
        yield process, f"rtsp://127.0.0.1:{port}/camera"


@pytest.fixture
def udp(ffmpeg):
    """The process of an FFmpeg that sends 25 pictures a second, and its address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"udp://127.0.0.1:{probe.getsockname()[1]}"
    pictures = ("-re", "-f", "lavfi", "-i", "testsrc=s=64x48:r=25")
    command = [shutil.which("ffmpeg"), "-loglevel", "error", "-nostdin", *pictures]
    command += ["-c:v", "mpeg2video", "-g", "5", "-f", "mpegts", address]
    with subprocess.Popen(command) as process:
        yield process, address
        process.kill()


def test_an_rtsp_server_that_hangs_is_a_stall_and_no_old_picture_is_returned(rtsp):
    process, address = rtsp
    with LiveCapture(address, fps=25, policy=POLICY) as live:
        captured_s = [next(live).captured_s]
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(SourceError, match=r"delivered no frame for \d\.\d s \(allowed: 1 s"):
            captured_s.extend(frame.captured_s for frame in live)
    # OpenCV returns two pictures after the time-out, the second one two time-outs old
    assert all(after - before < POLICY.stall_s for before, after in pairwise(captured_s))


def test_an_rtsp_server_that_dies_is_an_error_that_says_so(rtsp):
    process, address = rtsp
    with LiveCapture(address, fps=25, policy=replace(LIVE, stall_s=2.5)) as live:
        next(live)
        process.kill()
        with pytest.raises(SourceError, match=r"camera ended after \d+ frames .*check its server"):
            list(live)


def test_an_rtsp_server_that_is_killed_and_started_again_is_read_on(monkeypatch):
    monkeypatch.setattr(reconnect, "LONGEST_DELAY_S", reconnect.FIRST_DELAY_S)
    policy = replace(LIVE, stall_s=2.0, reconnect_s=20.0)
    with contextlib.ExitStack() as at_end:
        process, port = at_end.enter_context(rtsp_server())
        address = f"rtsp://127.0.0.1:{port}/camera"
        live = at_end.enter_context(LiveCapture(address, fps=25, policy=policy))
        before_s = next(live).time_s
        process.kill()
        process.wait()
        at_end.enter_context(rtsp_server(port))
        while not any(event.kind == "gap" for event in live.take_events()):
            frame = next(live)
        counts = live.counts
    assert frame.time_s > before_s
    assert counts.num_taken + counts.num_discarded == counts.num_captured


def test_an_rtsp_server_that_pauses_is_waited_for(rtsp):
    process, address = rtsp
    with LiveCapture(address, fps=25, policy=replace(LIVE, stall_s=2.5)) as live:
        next(live)
        process.send_signal(signal.SIGSTOP)
        threading.Timer(0.8, process.send_signal, [signal.SIGCONT]).start()
        assert max(next(live).time_s for _ in range(40)) > 0.8


def test_a_udp_sender_that_stops_is_a_stall(udp):
    process, address = udp
    with LiveCapture(address, fps=25, policy=POLICY) as live:
        next(live)
        process.kill()
        with pytest.raises(SourceError, match=r"delivered no frame for \d\.\d s \(allowed: 1 s"):
            list(live)


def test_rtsp_and_udp_are_live(rtsp, udp):
    for _, address in (rtsp, udp):
        with open_source(address, fps=2) as frames:
            assert frames.is_live


def test_an_rtspu_address_is_read_over_udp_and_an_rtsp_address_is_not(rtsp):
    _, address = rtsp
    assert num_udp_sockets_while_reading(address) == 0
    assert num_udp_sockets_while_reading(address.replace("rtsp://", "rtspu://")) > 0


def num_udp_sockets_while_reading(address):
    """UDP sockets that this process opens to read a frame of the stream."""
    before = udp_sockets()
    with open_source(address, fps=10) as live:
        next(live)
        return len(udp_sockets() - before)


def udp_sockets():
    """The inodes of this process's UDP sockets."""
    tables = [Path("/proc/self/net", name).read_text().splitlines()[1:] for name in ("udp", "udp6")]
    inodes = {line.split()[9] for table in tables for line in table}
    links = {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    return {inode for inode in inodes if f"socket:[{inode}]" in links}
