"""The event file of `run`: JSON lines that are whole after every crash, reopened by SIGHUP.

Each event is one write of one line, in append mode and without a buffer: a killed process loses
nothing that it had shown. Only a power failure can lose lines, those of the last seconds.
"""

import json
import os
import signal
import stat
from contextlib import suppress
from pathlib import Path
from types import FrameType

from mod_edge.bundle.disk_full import DISK_FULL
from mod_edge.commands.console import print_warning
from mod_edge.commands.standard_streams import has_closed_terminal
from mod_edge.commands.stream_view import StreamView
from mod_edge.errors import ConfigError, ModEdgeError
from mod_edge.runtime.events import Event, Summary, TextEvent
from mod_edge.runtime.session import Session

TAIL_BYTES = 65536  # read at once from the end, to find where the last whole line ends


class EventFile:
    """A file that lines are appended to; a context manager.

    A full or failing disk does not stop the caller: lines are lost and counted until writing works
    again, and every such time is reported once. No part of a lost line stays in the file.

    While it is entered, SIGHUP has it opened again, as log rotation expects of services. A SIGHUP
    because the terminal was closed is handled as before; where the signal is ignored, as under
    nohup, it stays ignored.

    Attributes:
        path: of the file.
        num_lost: lines that could not be written, so far.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, which need not exist; what it has is kept.

        A last line without its end, which a power failure leaves, is cut off.

        Raises:
            ConfigError: the path names something other than a file.
            ModEdgeError: the file cannot be opened.
            OSError: the disk is full.
        """
        self.path = path
        self.num_lost = 0
        self._is_moved = False
        self._is_failing = False
        self._is_torn = False
        self._file = _open(path)

    def __enter__(self) -> "EventFile":
        self._on_hang_up = signal.getsignal(signal.SIGHUP)
        if self._on_hang_up is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._hang_up)
        return self

    def __exit__(self, *_exc: object) -> None:
        # The command may have handed the signal back already.
        if signal.getsignal(signal.SIGHUP) == self._hang_up:
            signal.signal(signal.SIGHUP, self._on_hang_up)
        os.close(self._file)
        if self.num_lost:
            print_warning(f"{self.path}: {self.num_lost} events could not be written")

    def append(self, line: str) -> None:
        """Write one line, given without its end."""
        if self._is_moved:
            self._is_moved = False
            self._reopen()
        data = line.encode() + b"\n"
        try:
            self._mend()
            while data:  # a disk may get full within the line: then 2 writes
                data = data[os.write(self._file, data) :]
                self._is_torn = bool(data)
        except OSError as exc:
            with suppress(OSError):  # a disk that fails may refuse this too: cut before the next
                self._mend()
            self.num_lost += 1
            self._report(exc)
        else:
            self._is_failing = False

    def _mend(self) -> None:
        if self._is_torn:
            _cut_torn_line(self._file)
            self._is_torn = False

    def _reopen(self) -> None:
        """Open the path again, as a new file if it was moved away; keeps the old one on failure."""
        try:
            opened = _open(self.path)
        except (OSError, ModEdgeError) as exc:
            print_warning(f"{exc}; the old file is kept")
            return
        os.close(self._file)
        self._file = opened
        self._is_torn = False

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        if callable(self._on_hang_up) and has_closed_terminal():
            self._on_hang_up(number, frame)
        else:
            self._is_moved = True  # opened again before the next line: this one may be half done

    def _report(self, exc: OSError) -> None:
        if not self._is_failing:
            self._is_failing = True
            print_warning(
                f"{self.path} cannot be written: {exc.strerror}; the stream goes on, and events "
                "are missing in the file until writing works again"
            )


class EventFileView(StreamView):
    """Appends the lines of `--json` to an event file, which several streams may share."""

    def __init__(self, session: Session, file: EventFile, *, stream: str = "") -> None:
        super().__init__(session, stream=stream)
        self._file = file

    def show(self, event: Event) -> None:
        if not isinstance(event, TextEvent):
            self._append(event)

    def finish(self, summary: Summary) -> None:
        self._append(summary)

    def _append(self, event: Event) -> None:
        self._file.append(json.dumps(self.document(event)))


def _open(path: Path) -> int:
    """A file descriptor that appends to the last whole line."""
    # Without O_NONBLOCK, opening a named pipe waits for its reader.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        file = os.open(path, flags, 0o644)
    except IsADirectoryError as exc:
        raise _not_a_file(path) from exc
    except OSError as exc:
        if exc.errno in DISK_FULL:
            raise
        raise ModEdgeError(
            f"--events {path} cannot be opened: {exc.strerror}; check that its folder exists and "
            "that you may write there"
        ) from exc
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise _not_a_file(path)
        _cut_torn_line(file)
    except BaseException:
        os.close(file)
        raise
    return file


def _not_a_file(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} is not a file: events are appended to a file, so that a slow reader cannot stop "
        "the stream; for a pipe use --json"
    )


def _cut_torn_line(file: int) -> None:
    """End the file after its last whole line."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - TAIL_BYTES)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < os.fstat(file).st_size:
        os.ftruncate(file, end)
