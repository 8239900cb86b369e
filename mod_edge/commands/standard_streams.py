"""Standard streams that lead nowhere: closed from the start (`>&-`), or a terminal that is gone."""

import errno
import os
import sys
import termios


def open_standard_streams() -> None:
    """Open the null device in place of every closed standard stream.

    Python has None for such a stream. The next file that is opened would get the stream's number,
    and what native libraries print would be written into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(opened, True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(opened, mode, encoding="utf-8"))


def leave_closed_terminal() -> None:
    """Send the output for a terminal that was closed to the null device, so that writing works."""
    for number in (1, 2):
        if _leads_to_closed_terminal(number):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def has_closed_terminal() -> bool:
    """Whether a standard stream leads to a terminal that was closed."""
    return any(map(_leads_to_closed_terminal, range(3)))


def _leads_to_closed_terminal(number: int) -> bool:
    try:
        termios.tcgetattr(number)
    except termios.error as exc:
        return bool(exc.args[0] == errno.EIO)  # of a pipe or file: ENOTTY
    return False
