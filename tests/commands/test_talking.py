"""Talking to `mod-edge run`: JSON lines on a pipe, and typing on a real pseudo-terminal."""

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
import tty

import pytest

from tests.bounded import TIMEOUT_S
from tests.commands.mod_edge_command import (
    LONG_VIDEO_FRAMES,
    finish,
    start,
    succeeds,
)
from tests.commands.terminal_screen import TerminalScreen
from tests.runtime.capture.mjpeg_camera import MjpegServer

# A session of its own with standard input as its terminal, as a shell starts one; a test run in the
# background ignores Ctrl-C, and processes inherit that.
ON_TERMINAL = (
    "import fcntl, os, signal, termios\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "os.setsid()\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "from mod_edge.commands.app import app\n"
    "app(prog_name='mod-edge')\n"
)
# A job in the background of such a session, whose shell waits; one that is stopped is an error.
IN_BACKGROUND = (
    "import fcntl, os, sys, termios\n"
    "os.setsid()\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "job = os.fork()\n"
    "if job:\n"
    "    status = os.waitpid(job, os.WUNTRACED)[1]\n"
    "    sys.exit('stopped' if os.WIFSTOPPED(status) else os.WEXITSTATUS(status))\n"
    "os.setpgid(0, 0)\n"
    "from mod_edge.commands.app import app\n"
    "app(prog_name='mod-edge')\n"
)


def run_arguments(bundle, source):
    return ("run", bundle, "--source", source, "--max-new-tokens", 4)


# ---- sampling and stop texts ----


def said(bundle, *options):
    """The reply to a question without video."""
    arguments = ("run", bundle, "--query", "What?", "--max-new-tokens", 8, "--json", *options)
    events = [json.loads(line) for line in succeeds(*arguments).stdout.splitlines()]
    return next(event["text"] for event in events if event["event"] == "reply")


def test_a_seed_decides_what_is_said_at_a_temperature_and_a_stop_text_ends_it(tiny_bundle):
    drawn = ("--temperature", 2, "--top-p", 0.95, "--seed")
    third = said(tiny_bundle, *drawn, 3)
    assert said(tiny_bundle, *drawn, 3) == third
    assert said(tiny_bundle, *drawn, 4) != third
    assert said(tiny_bundle, *drawn, 3, "--stop", third[2:]) == third[:2].strip()


# ---- JSON lines ----


def test_json_lines_on_standard_input_ask_set_and_stop_and_a_bad_one_is_an_event(
    tiny_bundle, long_video
):
    arguments = (*run_arguments(tiny_bundle, long_video), "--json", "--tokens", "--stdin")
    process = start(*arguments, stdin=subprocess.PIPE)
    process.next_line()
    lines = [
        '{"query": "What happens?"}',
        "What happens?",
        "",
        '{"threshold": 0.25}',
        '{"threshold": 25}',
        '{"instruction": "Say when."}',
    ]
    process.stdin.write("\n".join(lines) + "\n")
    process.stdin.flush()
    events = []
    replied = set()
    for line in process.stdout:
        events.append(json.loads(line))
        if events[-1]["event"] == "reply":
            replied.add(events[-1]["query"])
        if replied >= {"What happens?", "Say when."} and events[-1]["event"] == "frame":
            break
    # `finish` would close standard input, which does not end a stream
    process.stdin.write('{"stop": true}\n')
    process.stdin.flush()
    events += [json.loads(line) for line in process.stdout]
    printed, errors = finish(process)
    assert (process.returncode, printed, errors) == (0, "", "")
    kinds = [event["event"] for event in events]
    assert kinds[-1] == "summary"
    num_tokens = sum(len(event["token_ids"]) for event in events if event["event"] == "reply")
    assert kinds.count("text") >= num_tokens  # one more if a reply ends within a character
    told = {event["line_number"]: event["message"] for event in events if "line_number" in event}
    assert list(told) == [2, 5]
    assert told[2].startswith("'What happens?' is not JSON")
    assert told[5] == "threshold=25.0, wanted a probability, 0 to 1"
    assert [event["threshold"] for event in events if event["event"] == "threshold"] == [0.25]
    assert events[-1]["num_frames"] < LONG_VIDEO_FRAMES


def test_requests_are_followed_at_their_places_in_the_stream(tiny_bundle, long_video):
    arguments = (*run_arguments(tiny_bundle, long_video), "--json", "--stdin", "--window", 260)
    process = start(*arguments, stdin=subprocess.PIPE)
    process.stdin.write('{"instruction": "Say when."}\n{"query": "And now?", "time_s": 60}')
    process.stdin.close()  # the end of the input ends neither the last line nor the stream
    process.stdin = None
    events = []
    for line in process.stdout:
        events.append(json.loads(line))
        if events[-1].get("query") == "And now?" and events[-1]["event"] == "reply":
            break
    process.terminate()
    finish(process)
    asked = [event for event in events if event["event"] == "query"]
    assert [event["query"] for event in asked] == ["Say when.", "And now?"]
    assert [event["is_instruction"] for event in asked] == [True, False]
    assert asked[1]["time_s"] == asked[1]["asked_s"] == 60
    (stands,) = (event for event in events if event["event"] == "instruction")
    assert stands["instruction"] == "Say when."
    assert events[events.index(stands) - 1]["event"] == "roll"


def test_a_request_to_one_of_two_streams_is_followed_by_that_one(tiny_bundle, long_video, tmp_path):
    for name in ("door", "yard"):
        (tmp_path / f"{name}.avi").symlink_to(long_video)
    sources = [part for name in ("door", "yard") for part in ("--source", tmp_path / f"{name}.avi")]
    arguments = ("run", tiny_bundle, *sources, "--max-new-tokens", 4, "--json", "--stdin")
    process = start(*arguments, stdin=subprocess.PIPE)
    door = json.loads(process.next_line())["stream"]
    process.stdin.write(
        f'{{"query": "Who?", "stream": "{door}"}}\n{{"cut": true, "stream": "gate"}}\n'
    )
    process.stdin.flush()
    events = []
    for line in process.stdout:
        events.append(json.loads(line))
        if events[-1].get("query") == "Who?" and events[-1]["event"] == "reply":
            process.stdin.write('{"stop": true}\n')
            process.stdin.flush()
    _, errors = finish(process)
    assert (process.returncode, errors) == (0, "")
    assert {event["stream"] for event in events if event.get("query") == "Who?"} == {door}
    (bad,) = [event["message"] for event in events if event["event"] == "bad_line"]
    assert bad.startswith("\"stream\": 'gate', but the streams are ")
    assert sum(event["event"] == "summary" for event in events) == 2


@pytest.mark.parametrize("options", [(), ("--stdin",)], ids=["left alone", "--stdin"])
def test_the_null_device_as_standard_input_ends_nothing(tiny_bundle, long_video, options):
    arguments = (*run_arguments(tiny_bundle, long_video), "--json", "--max-frames", 5, *options)
    process = start(*arguments, stdin=subprocess.DEVNULL)
    printed, errors = finish(process)
    assert (process.returncode, errors) == (0, "")
    assert json.loads(printed.splitlines()[-1])["num_frames"] == 5


def test_a_pipe_is_not_read_without_the_option(tiny_bundle, long_video):
    ours, theirs = os.pipe()
    os.write(theirs, b'{"stop": true}\n')
    process = start(
        *run_arguments(tiny_bundle, long_video), "--json", "--max-frames", 5, stdin=ours
    )
    finish(process)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        assert pipe.read() == '{"stop": true}\n'


# ---- a terminal ----


class Terminal:
    """A `mod-edge run` on a pseudo-terminal: `type` keys, `wait` until the screen shows a text."""

    def __init__(self, *arguments, program=ON_TERMINAL, **environment):
        self._ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
        self.screen = TerminalScreen()
        variables = {"TERM": "xterm", "NO_COLOR": "1", "OMP_NUM_THREADS": "1", **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            env={**os.environ, **variables},
        )

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self.theirs)

    def type(self, text):
        """Press keys."""
        os.write(self._ours, text.encode())

    def wait(self, text):
        """Read the output until a line of the screen has `text`; returns that line."""
        end_s = time.monotonic() + TIMEOUT_S
        while not (lines := [line for line in self.screen.lines if text in line]):
            assert time.monotonic() < end_s, f"no {text!r} in {self.screen.lines}"
            self.read()
        return lines[-1]

    def read(self):
        """Take the output that comes within a second."""
        if select.select([self._ours], [], [], 1)[0]:
            self.screen.feed(os.read(self._ours, 65_536))

    def finish(self):
        """Read the output until the program ends; returns its exit code."""
        end_s = time.monotonic() + TIMEOUT_S
        while self.process.poll() is None:
            assert time.monotonic() < end_s, f"not ended: {self.screen.lines}"
            self.read()
        while select.select([self._ours], [], [], 0)[0]:
            self.read()
        return self.process.returncode

    def echoes(self):
        """Whether the terminal shows and collects keys itself."""
        flags = termios.tcgetattr(self.theirs)[tty.LFLAG]
        return bool(flags & termios.ECHO) and bool(flags & termios.ICANON)


@pytest.mark.live
def test_lines_typed_below_the_live_view_are_asked_and_leave_no_trace(tiny_bundle):
    with (
        MjpegServer() as camera,
        Terminal(*run_arguments(tiny_bundle, camera.url)) as terminal,
    ):
        terminal.wait("> ")
        terminal.wait("type a question")
        terminal.type("What happens")
        assert terminal.wait("> What").startswith("> What happens")
        assert not terminal.echoes()
        terminal.type("?\r")
        asked = terminal.wait("query     ")
        assert asked.endswith("query     What happens?")
        terminal.type("/threshold 0.25\r")
        terminal.wait("threshold 0.25")
        terminal.type("/louder\r")
        terminal.wait("bad line  line 3: '/louder' is not a command")
        terminal.type("half a quest\x03")  # Ctrl-C
        assert terminal.finish() == 0
        assert terminal.echoes()
    lines = terminal.screen.lines
    # the status and the typed line are gone; nothing typed was echoed in between
    assert not [line for line in lines if line.startswith("> ") or "half a quest" in line]
    assert sum("What happens?" in line for line in lines) <= 2  # the query, and its reply may be
    assert any(line.startswith("frames ") for line in lines)


@pytest.mark.live
@pytest.mark.slow
def test_on_a_terminal_without_a_cursor_whole_lines_are_read(tiny_bundle):
    with (
        MjpegServer() as camera,
        Terminal(*run_arguments(tiny_bundle, camera.url), "--verbose", TERM="dumb") as terminal,
    ):
        terminal.wait("frame 0")
        assert terminal.echoes()
        terminal.type("What happens?\n")
        terminal.wait("query     What happens?")
        terminal.type("/stop\n")
        assert terminal.finish() == 0
    assert any(line.startswith("frames ") for line in terminal.screen.lines)


@pytest.mark.live
def test_with_stdin_a_terminal_takes_typed_lines_beside_json(tiny_bundle):
    with (
        MjpegServer() as camera,
        Terminal(*run_arguments(tiny_bundle, camera.url), "--json", "--stdin") as terminal,
    ):
        terminal.wait('"event": "frame"')
        terminal.type("What happens?\n")
        terminal.wait('"query": "What happens?"')
        terminal.type("/stop\n")
        assert terminal.finish() == 0


@pytest.mark.slow
def test_a_job_in_the_background_leaves_the_terminal_alone_and_is_not_stopped(
    tiny_bundle, long_video
):
    arguments = (*run_arguments(tiny_bundle, long_video), "--max-frames", 3)
    with Terminal(*arguments, program=IN_BACKGROUND) as terminal:
        terminal.type("/stop\r")
        assert terminal.finish() == 0
        assert terminal.echoes()
    assert terminal.wait("frames ").split()[1] == "3"
