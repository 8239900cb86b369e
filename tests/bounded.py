"""Waiting that ends: for a process's output, and for what another thread does."""

import subprocess
import threading
import time

TIMEOUT_S = 120  # of a process
LONGEST_S = 20  # of another thread
POLL_S = 0.002


class BoundedProcess(subprocess.Popen):
    """A process that is killed after `TIMEOUT_S`: then every read of its pipes ends."""

    def __init__(self, *arguments, **options):
        self._overdue = threading.Timer(TIMEOUT_S, self.kill)
        self._overdue.daemon = True
        super().__init__(*arguments, **options)
        self._overdue.start()

    def __exit__(self, *exc):
        try:
            super().__exit__(*exc)
        finally:
            self._overdue.cancel()

    def next_line(self):
        """The next line of its output."""
        line = self.stdout.readline()
        assert line, f"the process has ended, perhaps after {TIMEOUT_S} s: {self.args}"
        return line


def await_until(is_true):
    """Return once `is_true()`, which something else makes true; fails after `LONGEST_S`."""
    end_s = time.monotonic() + LONGEST_S
    while not is_true():
        assert time.monotonic() < end_s, f"still not true after {LONGEST_S} s"
        time.sleep(POLL_S)
