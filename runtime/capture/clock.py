"""The clocks that a live source reads, in one object that a test can replace."""

import threading
import time
from datetime import datetime, timezone


class Clock:
    """This machine's clocks; a test passes one that it moves itself."""

    def now_s(self) -> float:
        """Seconds of a clock that never jumps, for ages and intervals."""
        return time.monotonic()

    def utc(self) -> datetime:
        """The time of day, which jumps when the machine's clock is set."""
        return datetime.now(timezone.utc)

    def wait(self, changed: threading.Condition, timeout_s: float) -> None:
        """Wait until `changed`, which the caller holds, is notified, or for `timeout_s`."""
        changed.wait(timeout_s)


class Pause:
    """Waits of one thread, which another one ends for good."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._is_over = False

    def until(self, time_s: float) -> bool:
        """Wait until that time of `Clock.now_s`; False if `end` was called, also before."""
        with self._changed:
            while not self._is_over and (left_s := time_s - self._clock.now_s()) > 0:
                self._clock.wait(self._changed, left_s)
            return not self._is_over

    def end(self) -> None:
        """End the present wait and all later ones."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


def rfc3339(at: datetime) -> str:
    """A time of day in UTC as text, to the millisecond: 2026-05-01T12:30:00.250Z."""
    utc = at.astimezone(timezone.utc)
    return utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")
