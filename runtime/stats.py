"""Percentiles of the newest times, in memory that does not grow with the stream."""

import numpy as np

CAPACITY = 4096


class Latencies:
    """Keeps the newest `CAPACITY` times in milliseconds."""

    def __init__(self) -> None:
        self._times_ms = np.zeros(CAPACITY, np.float32)
        self._count = 0
        self._longest_ms = 0.0

    def add(self, time_ms: float) -> None:
        """Add one time."""
        self._times_ms[self._count % CAPACITY] = time_ms
        self._count += 1
        self._longest_ms = max(self._longest_ms, time_ms)

    def percentiles(self) -> dict[str, float]:
        """p50 and p95 in milliseconds; zeros if there is no time yet."""
        if not self._count:
            return {"p50": 0.0, "p95": 0.0}
        newest = self._times_ms[: min(self._count, CAPACITY)]
        p50, p95 = np.percentile(newest, (50, 95))
        return {"p50": round(float(p50), 3), "p95": round(float(p95), 3)}

    def with_longest(self) -> dict[str, float]:
        """`percentiles`, and the longest of all times as max."""
        return self.percentiles() | {"max": round(self._longest_ms, 3)}
