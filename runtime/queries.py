"""What a person asks of the stream, and when."""

import re
import threading
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass

from mod_edge.errors import ConfigError


@dataclass(frozen=True)
class Query:
    """A question or instruction to put to the model at `time_s` seconds of video."""

    text: str
    time_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ConfigError("a query is empty; give it some words")


def parse_query(text: str) -> Query:
    """The query that "text" or "text@12.5" means: at the start, or at 12.5 s of video.

    Only an @ followed by a number splits, and of several the last one.
    """
    match = re.fullmatch(r"(.*)@\s*(\d+(?:\.\d+)?)\s*", text, flags=re.DOTALL)
    if match is None:
        return Query(text)
    return Query(match[1].rstrip(), float(match[2]))


class QueryQueue:
    """Queries that wait for their time; any thread puts some in, the stream's thread takes them."""

    def __init__(self, queries: Iterable[Query] = ()) -> None:
        self._lock = threading.Lock()
        self._waiting = sorted(queries, key=_time_s)

    def put(self, query: Query) -> None:
        """Add one, after those of the same time."""
        with self._lock:
            insort(self._waiting, query, key=_time_s)

    def next_s(self) -> float | None:
        """When the first one is due; None where none waits."""
        with self._lock:
            return self._waiting[0].time_s if self._waiting else None

    def is_due_at(self, time_s: float) -> bool:
        """Whether one is due at `time_s` or before."""
        next_s = self.next_s()
        return next_s is not None and next_s <= time_s

    def is_due_before(self, time_s: float) -> bool:
        """Whether one is due before `time_s`."""
        next_s = self.next_s()
        return next_s is not None and next_s < time_s

    def take(self) -> Query:
        """The first one, which waits no longer."""
        with self._lock:
            return self._waiting.pop(0)

    def waiting(self) -> tuple[Query, ...]:
        """Those that were not taken, in the order of their times."""
        with self._lock:
            return tuple(self._waiting)


def _time_s(query: Query) -> float:
    return query.time_s
