"""Queries to the model, each at a time of the stream."""

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
            raise ConfigError("a query is empty; write some text")


def parse_query(text: str) -> Query:
    """The query from "text" (at the start) or "text@12.5" (at 12.5 s of video).

    Only an @ followed by a number splits the text, the last one if there are several.
    """
    match = re.fullmatch(r"(.*)@\s*(\d+(?:\.\d+)?)\s*", text, flags=re.DOTALL)
    if match is None:
        return Query(text)
    return Query(match[1].rstrip(), float(match[2]))


class QueryQueue:
    """Pending queries by time; any thread adds them, the stream's thread takes them."""

    def __init__(self, queries: Iterable[Query] = ()) -> None:
        self._lock = threading.Lock()
        self._waiting = sorted(queries, key=_time_s)

    def put(self, query: Query) -> None:
        """Add a query, after those of the same time."""
        with self._lock:
            insort(self._waiting, query, key=_time_s)

    def next_s(self) -> float | None:
        """The time of the first query; None if there is none."""
        with self._lock:
            return self._waiting[0].time_s if self._waiting else None

    def is_due_at(self, time_s: float) -> bool:
        """Whether a query is due at or before `time_s`."""
        next_s = self.next_s()
        return next_s is not None and next_s <= time_s

    def is_due_before(self, time_s: float) -> bool:
        """Whether a query is due before `time_s`."""
        next_s = self.next_s()
        return next_s is not None and next_s < time_s

    def take(self) -> Query:
        """Remove and return the first query."""
        with self._lock:
            return self._waiting.pop(0)

    def waiting(self) -> tuple[Query, ...]:
        """The queries that were not taken, by time."""
        with self._lock:
            return tuple(self._waiting)


def _time_s(query: Query) -> float:
    return query.time_s
