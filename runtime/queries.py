"""Queries to the model, each at a time of the stream."""

import re
from bisect import insort
from collections import deque
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
    """Pending queries by time, for one thread; other threads only call `put`."""

    def __init__(self, queries: Iterable[Query] = ()) -> None:
        self._waiting = sorted(queries, key=_time_s)
        self._received = deque[Query]()  # append and popleft are atomic

    def put(self, query: Query) -> None:
        """Add a query from any thread; it waits for `receive`."""
        self._received.append(query)

    def receive(self) -> None:
        """Sort in the queries that were put, each after those of the same time."""
        while self._received:
            insort(self._waiting, self._received.popleft(), key=_time_s)

    def is_due_at(self, time_s: float) -> bool:
        """Whether a query is due at or before `time_s`."""
        return bool(self._waiting) and self._waiting[0].time_s <= time_s

    def is_due_before(self, time_s: float) -> bool:
        """Whether a query is due before `time_s`."""
        return bool(self._waiting) and self._waiting[0].time_s < time_s

    def take(self) -> Query:
        """Remove and return the first query."""
        return self._waiting.pop(0)

    def waiting(self) -> list[Query]:
        """The queries that were not taken, by time, also those not received yet."""
        return sorted([*self._waiting, *self._received], key=_time_s)


def _time_s(query: Query) -> float:
    return query.time_s
