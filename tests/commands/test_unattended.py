"""`mod-edge run` that nobody watches: killed, suspended, rotated, and under a service manager."""

import json
import os
import pty
import signal
import socket
import sys

import pytest

from tests.bounded import TIMEOUT_S, BoundedProcess
from tests.commands.mod_edge_command import finish, invoke, start
from tests.runtime.capture.mjpeg_camera import MjpegServer

# A process that leads its session, with its standard input as the session's terminal.
WITH_TERMINAL = (
    "import fcntl, termios\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "from mod_edge.commands.app import app\n"
    "app(prog_name='mod-edge')\n"
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


def events_in(path):
    """The events of a file whose lines must all be whole."""
    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def indices_of(events):
    return [event["index"] for event in events if event["event"] == "frame"]


def start_run(bundle, source, path, *options, **settings):
    arguments = ("run", bundle, "--source", source, "--max-new-tokens", 4, "--events", path)
    return start(*arguments, *options, **settings)


# ---- processes ----


def test_a_killed_process_leaves_every_event_that_it_had_shown(tiny_bundle, long_video, path):
    process = start_run(tiny_bundle, long_video, path, "--json")
    shown = [process.next_line() for _ in range(40)]
    process.kill()
    finish(process)
    assert process.returncode == -signal.SIGKILL
    assert path.read_text().splitlines(keepends=True)[:40] == shown
    indices = indices_of(events_in(path))
    assert indices == list(range(len(indices)))


def test_a_stream_survives_a_pause_and_a_rotation_and_ends_with_0(tiny_bundle, long_video, path):
    process = start_run(tiny_bundle, long_video, path, "--verbose")
    process.next_line()
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    rotated = path.with_name("events.jsonl.1")
    path.rename(rotated)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGHUP)
    while not path.exists() or not path.stat().st_size:
        process.next_line()
    process.send_signal(signal.SIGTERM)
    _, errors = finish(process)
    assert process.returncode == 0, errors
    events = events_in(rotated) + events_in(path)
    assert events[-1]["event"] == "summary"
    indices = indices_of(events)
    assert indices == list(range(len(indices)))
    # a signal between counting and writing leaves one frame counted but not written
    assert events[-1]["num_frames"] - len(indices) in (0, 1)


def test_a_closed_terminal_ends_the_stream_with_its_summary(tiny_bundle, long_video, path):
    terminal, shown = pty.openpty()
    arguments = ("run", tiny_bundle, "--source", long_video, "--events", path)
    with BoundedProcess(
        [sys.executable, "-c", WITH_TERMINAL, *map(str, arguments)],
        stdin=shown,
        stdout=shown,
        stderr=shown,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        os.close(shown)
        while not path.exists() or not path.stat().st_size:
            os.read(terminal, 4096)
        os.close(terminal)
        assert process.wait(TIMEOUT_S) == 0
    assert events_in(path)[-1]["event"] == "summary"


def test_a_reader_that_stops_ends_the_run_and_the_file_stays_whole(tiny_bundle, long_video, path):
    process = start_run(tiny_bundle, long_video, path, "--json")
    process.next_line()
    process.stdout.close()
    with process:
        process.stdout = None
        errors = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == 1
    assert errors == ""
    indices = indices_of(events_in(path))
    assert indices == list(range(len(indices)))


# ---- the option ----


def test_an_event_file_that_cannot_be_opened_is_an_error_before_the_model_is_loaded(tmp_path, clip):
    nowhere = tmp_path / "nowhere" / "events.jsonl"
    result = invoke("run", tmp_path / "no-bundle", "--source", clip, "--events", nowhere)
    assert result.exit_code == 1  # its disk may be there at the next start
    assert result.stderr == (
        f"error: --events {nowhere} cannot be opened: No such file or directory; check that its "
        "folder exists and that you may write there\n"
    )


def test_an_event_file_that_is_no_file_is_a_usage_error(tmp_path, clip):
    result = invoke("run", tmp_path / "no-bundle", "--source", clip, "--events", tmp_path)
    assert result.exit_code == 2
    said = " ".join(result.output.replace("│", " ").split())
    assert "Invalid value for --events:" in said
    assert "is not a file: events are appended to a file" in said


def test_a_conversation_of_text_alone_has_no_event_file(path):
    result = invoke("run", "bundle", "--query", "What?", "--events", path)
    assert result.exit_code == 2
    assert "--events only with --source FILE or --camera NUMBER" in result.output
    assert not path.exists()


# ---- systemd ----


@pytest.fixture
def service(tmp_path):
    """A listener in systemd's place and the environment that it would set."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(TIMEOUT_S)
        yield listener, {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "200000"}


def wait_for(listener, message):
    while listener.recv(4096) != message:
        pass


@pytest.mark.live
def test_the_watchdog_hears_of_a_camera_only_while_it_sends(tiny_bundle, path, service):
    listener, environment = service
    with MjpegServer() as camera:
        process = start_run(tiny_bundle, camera.url, path, environment=environment)
        assert listener.recv(4096) == b"READY=1"
        wait_for(listener, b"WATCHDOG=1")
        camera.is_silent.set()
        listener.settimeout(1)  # five times the watchdog's time
        with pytest.raises(TimeoutError):
            wait_for(listener, b"READY=1")  # which does not come twice
        listener.settimeout(TIMEOUT_S)
        camera.is_silent.clear()
        wait_for(listener, b"WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        wait_for(listener, b"STOPPING=1")
        _, errors = finish(process)
    assert process.returncode == 0, errors
