"""What native libraries print to standard error, caught instead of shown."""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_DIVERTING = threading.RLock()  # there is one standard error: one thread diverts it, nested or not


@dataclass
class Noise:
    """What was printed; complete after the `with` block."""

    text: str = ""


@contextmanager
def captured_noise() -> Iterator[Noise]:
    """Divert file descriptor 2, where C++ writes; sys.stderr alone would not reach it.

    Other threads' output of these moments is caught too: keep the block short.
    """
    noise = Noise()
    with _DIVERTING, tempfile.TemporaryFile() as sink:
        try:
            saved = os.dup(2)
        except OSError:  # a process without standard error has nothing to keep quiet
            yield noise
            return
        try:
            if sys.stderr is not None:
                sys.stderr.flush()  # what Python printed before belongs outside
            os.dup2(sink.fileno(), 2)
            yield noise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            noise.text = sink.read().decode(errors="replace")
