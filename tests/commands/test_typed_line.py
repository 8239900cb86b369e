"""Keys to lines: what is typed, edited and ignored."""

import os
import pty
import termios
import tty

import pytest

from mod_edge.commands.typed_line import TypedLine, unechoed


@pytest.fixture
def typed():
    """A line, with `lines` and `escapes` for what it reported."""
    line = TypedLine(lambda text: line.lines.append(text), lambda: line.escapes.append(True))
    line.lines, line.escapes = [], []
    return line


@pytest.mark.parametrize(
    ("keys", "lines", "rest"),
    [
        ([b"What?\r"], ["What?"], ""),
        ([b"W", b"h", b"y", b"\n", b"no"], ["Why"], "no"),
        ([b"one\ntwo\nthr"], ["one", "two"], "thr"),  # pasted
        ([b"\r", b"  \r"], [], ""),
        ([b"Whu\x7fy"], [], "Why"),
        ([b"\x7f\x08x"], [], "x"),
        ([b"wrong\x15right"], [], "right"),
        ([b"one two  \x17"], [], "one "),
        ([b"L\xc3", b"\xa4uft \xe4\xbd\x95\x7f?"], [], "L\u00e4uft ?"),
        ([b"\xffx"], [], "\N{REPLACEMENT CHARACTER}x"),
        ([b"a", b"\x1b[A", b"\x1b[1;5C", b"\x1bOP", b"\x1bx", b"b"], [], "ab"),
        ([b"a\x00\x01\tb"], [], "ab"),
    ],
)
def test_keys_become_lines(typed, keys, lines, rest):
    for data in keys:
        typed.feed(data)
    assert (typed.lines, typed.text, typed.escapes) == (lines, rest, [])


def test_esc_alone_is_reported_and_keeps_the_line(typed):
    for data in (b"Wh", b"\x1b", b"y"):
        typed.feed(data)
    assert (typed.text, typed.escapes) == ("Why", [True])


def test_a_terminal_without_echo_still_sends_the_signals_of_its_keys():
    ours, theirs = pty.openpty()
    try:
        unechoed(theirs)
        flags = termios.tcgetattr(theirs)[tty.LFLAG]
        assert not flags & (termios.ICANON | termios.ECHO)
        assert flags & termios.ISIG
    finally:
        os.close(ours)
        os.close(theirs)
