"""Capture what native libraries print to standard error instead of showing it."""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MEMFD_CLOEXEC = 1  # see memfd_create(2); os.memfd_create sets it too
_REDIRECTING = threading.RLock()  # a process has one stderr: one thread at a time, may nest


@dataclass
class CapturedStderr:
    """The captured output; complete after the `with` block."""

    text: str = ""


@contextmanager
def captured_stderr() -> Iterator[CapturedStderr]:
    """Redirect file descriptor 2, which C++ code writes to; replacing sys.stderr would miss it.

    Output of other threads is captured too while the block runs: keep it short.
    """
    captured = CapturedStderr()
    with _REDIRECTING, os.fdopen(_file_in_memory(), "w+b") as sink:
        try:
            saved = os.dup(2)
        except OSError:  # a process without standard error has nothing to capture
            yield captured
            return
        try:
            if sys.stderr is not None:
                sys.stderr.flush()  # what Python printed before belongs outside
            os.dup2(sink.fileno(), 2)
            yield captured
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            captured.text = sink.read().decode(errors="replace")


def _file_in_memory() -> int:
    """The descriptor of a new file in memory.

    A device's file system may be read-only, and a pipe would block what it cannot hold.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create("stderr")
    # The Pythons of conda and uv are built for older C libraries than the systems they run on.
    function = ctypes.CDLL(None, use_errno=True).memfd_create
    descriptor: int = function(b"stderr", MEMFD_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return descriptor
