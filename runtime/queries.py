"""Queries to the model, each at a time of the stream."""

import math
import re
from bisect import insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from mod_edge.errors import ConfigError
from mod_edge.unicode_text import lone_surrogate

# What may follow the last @ as a time, and what was surely meant as one.
SECONDS = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
LIKE_A_TIME = (
    r"[-+\N{MINUS SIGN}]?\s*(?=[.,]?\d)(?:\d+(?::\d+)*)?(?:[.,]\d*)?(?:e[-+\N{MINUS SIGN}]?\d+)?"
    r"\s*(?:ms|s|secs?|seconds?|m|mins?|minutes?|h|hours?)?"
)


@dataclass(frozen=True)
class Query:
    """A question or instruction to put to the model at `time_s` seconds of video.

    With `is_instruction`, it takes the standing instruction's place at the next roll of the cache.
    """

    text: str
    time_s: float = 0.0
    is_instruction: bool = False

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ConfigError("a query is empty; write some text")
        fault = lone_surrogate(self.text)
        if fault is not None:
            raise ConfigError(
                f"the query {self.text[:40]!r} is not Unicode text: {fault}; write it in UTF-8, "
                "in a UTF-8 locale such as LC_ALL=C.UTF-8"
            )
        if not (math.isfinite(self.time_s) and self.time_s >= 0):
            raise ConfigError(
                f"the query {self.text[:40]!r} is at {self.time_s:g} s of video, wanted 0 or later"
            )


def parse_query(text: str) -> Query:
    """The query from "text" (at the start) or "text@12.5" (at 12.5 s of video).

    A time is a decimal number of seconds after the last @, such as "12", "12.5", ".5" or "1e3".
    Text with another @ has no time; "@0" after a text that ends like one keeps it as text.

    Raises:
        ConfigError: the query is empty or not Unicode text, or has a time that is written in
            another way, such as "-1", "1:30" or "5s".
    """
    match = re.fullmatch(rf"(.*)@\s*({SECONDS})\s*", text, flags=re.DOTALL)
    if match is not None:
        return Query(match[1].rstrip(), float(match[2]))
    _, at, end = text.rpartition("@")
    if at and re.fullmatch(LIKE_A_TIME, end.strip(), flags=re.IGNORECASE):
        raise ConfigError(
            f"the query {text[:40]!r} ends with {at + end!r}, wanted a number of seconds, 0 or "
            "more, such as @12.5; add @0 to keep it as text"
        )
    return Query(text)


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

    def __len__(self) -> int:
        """The number of queries that were not taken, also those not received yet."""
        return len(self._waiting) + len(self._received)

    def waiting(self) -> list[Query]:
        """The queries that were not taken, by time, also those not received yet."""
        return sorted([*self._waiting, *self._received], key=_time_s)


def _time_s(query: Query) -> float:
    return query.time_s
